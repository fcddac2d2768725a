"""Distances relative to one run's best, which is how methods of different papers can be compared at
all."""

from __future__ import annotations

from math import hypot

from core.errors import UserError, nearest
from eval.curves.compare import standard_error
from eval.curves.table import number_words, protocol_words, series_words
from eval.rows import by_protocol, is_floor, measure_words, series_key

FEW = 16  # steps that the table ends with: with more, students and teachers meet


def ratio(row: dict, best: dict) -> tuple[float, float | None]:
    """row's distance over best's, and its standard error (first order, errors independent; None
    where one has none)."""
    value, errors = row["fid"] / best["fid"], (standard_error(row), standard_error(best))
    if row is best or None in errors:
        return value, None
    return value, value * hypot(errors[0] / row["fid"], errors[1] / best["fid"])


def ratio_tables(rows: list[dict], run: str) -> str:
    """Markdown, one table a protocol in which `run` was measured: every series by steps, over the
    run's lowest distance.

    Raises:
        UserError: no row is of that run, or rows of several runs with that name.
    """
    runs = sorted({row["run"] for row in rows if not is_floor(row)})
    if run not in runs:
        raise UserError(f"no row is of run '{run}'{nearest(run, runs)}")
    parts = []
    for group in by_protocol(rows):
        own = [row for row in group if row["run"] == run and not is_floor(row)]
        if not own:
            continue
        if all(row["steps"] > FEW for row in group if not is_floor(row)):
            continue
        if len({row["config_sha256"] for row in own}) > 1:
            raise UserError(
                f"run '{run}' stands for several folders of that name: draw their curves files one by one"
            )
        best = min(own, key=lambda row: row["fid"])
        series: dict[tuple, dict[int, dict]] = {}
        for row in group:
            if not is_floor(row) and row["steps"] <= FEW:
                series.setdefault(series_key(row), {})[row["steps"]] = row
        steps = sorted({step for points in series.values() for step in points})
        where = f"{series_words(best, group)}, {best['steps']} step{'s' * (best['steps'] > 1)}"
        lowest = (
            f"the lowest of run {run}, {number_words(best['fid'], standard_error(best))} ({where})"
        )
        lines = [
            f"{protocol_words(group)}: {measure_words(best)} over {lowest}; ± is a standard error",
            "",
            "| steps | " + " | ".join(map(str, steps)) + " |",
            "|---" + "|---:" * len(steps) + "|",
        ]
        for points in series.values():
            cells = [
                number_words(*ratio(points[step], best)) if step in points else "" for step in steps
            ]
            lines.append(
                f"| {series_words(next(iter(points.values())), group)} | "
                + " | ".join(cells)
                + " |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
