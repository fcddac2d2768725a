"""Distances relative to one run's best, which is how methods of different papers can be compared at
all."""

from __future__ import annotations

from math import hypot

from core.errors import UserError, nearest
from eval.curves.compare import standard_error
from eval.curves.series import (
    by_protocol,
    measured,
    point_label,
    protocol_label,
    series_label,
    series_of,
)
from eval.rows import Row, measure_label
from eval.text import markdown, markdown_table, number

FEW = 16  # steps that the table ends with: with more, students and teachers meet


def ratio(row: Row, best: Row) -> tuple[float, float | None]:
    """row's distance over best's, and its standard error (first order, errors independent; None
    where one has none)."""
    value, errors = row.fid / best.fid, (standard_error(row), standard_error(best))
    if row is best or None in errors:
        return value, None
    return value, hypot(errors[0], value * errors[1]) / best.fid


def best_of(rows: list[Row], run: str) -> Row | None:
    """The row with the run's lowest distance among rows of one protocol; None where the run was not
    measured.

    Raises:
        UserError: rows of several runs with that name, or its lowest distance is not above 0.
    """
    own = [row for row in measured(rows) if row.run == run]
    if not own:
        return None
    if len({row.config_sha256 for row in own}) > 1:
        raise UserError(
            f"run '{run}' stands for several folders of that name: draw their curves files one by "
            "one"
        )
    best = min(own, key=lambda row: row.fid)
    if best.fid <= 0:
        raise UserError(
            f"the lowest {measure_label(best)} of run '{run}' is {best.fid:g}: no ratio to it"
        )
    return best


def ratio_cells(group: list[Row], best: Row, steps: list[int]) -> list[list[str]]:
    """Header and body of one group's table: each series that has a point at one of `steps`, over
    `best`."""
    few, body = [row for row in measured(group) if row.steps in steps], []
    for points in series_of(few).values():
        at = {row.steps: number(*ratio(row, best)) for row in points}
        body.append([series_label(points[0], group), *(at.get(step, "") for step in steps)])
    return [["steps", *map(str, steps)], *body]


def ratio_tables(rows: list[Row], run: str) -> str:
    """Markdown, one table per protocol in which `run` was measured: every series by steps, over the
    run's lowest distance.

    Raises:
        UserError: no row is of that run; see `best_of`.
    """
    groups, parts = by_protocol(rows), []
    runs = sorted({row.run for group in groups for row in measured(group)})
    if run not in runs:
        raise UserError(f"no row is of run '{run}'{nearest(run, runs)}")
    for group in groups:
        steps = sorted({row.steps for row in measured(group) if row.steps <= FEW})
        best = best_of(group, run) if steps else None
        if best is None:
            continue
        lowest = f"{number(best.fid, standard_error(best))} ({point_label(best, group)})"
        title = (
            f"{protocol_label(group)}: {measure_label(best)} over the lowest of run {run}, {lowest}"
            "; ± is a standard error"
        )
        header, *body = ratio_cells(group, best, steps)
        parts.append(f"{markdown(title)}\n\n{markdown_table(header, body)}")
    return "\n\n".join(parts)
