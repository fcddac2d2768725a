"""Which series is best at each number of network evaluations, and whether by more than its
error."""

from __future__ import annotations

from math import hypot

from eval.curves.compare import needed_z, standard_error
from eval.curves.table import number_words, protocol_words, series_words
from eval.rows import by_protocol, is_floor, measure_words

PLACES = 3


def ranking(group: list[dict]) -> dict[float, list[dict]]:
    """NFE -> rows of one protocol, best first, where at least two series were measured. Of equal
    rows (solvers that are the same in one step) the first stands for all."""
    points: dict[float, list[dict]] = {}
    for row in group:
        if not is_floor(row):
            points.setdefault(round(row["nfe"], 6), []).append(row)
    ranked = {}
    for nfe, rows in sorted(points.items()):
        unlike = {(row["weights_sha256"], round(row["fid"], 4)): row for row in reversed(rows)}
        if len(unlike) > 1:
            ranked[nfe] = sorted(unlike.values(), key=lambda row: row["fid"])
    return ranked


def ranking_tables(rows: list[dict]) -> str:
    """Markdown, one table a protocol: the first three at each NFE; z is the distance to the first
    in standard errors of the difference, taken as independent; an asterisk where it is more than
    its error (eval/curves/compare.py)."""
    parts = []
    for group in by_protocol(rows):
        ranked = ranking(group)
        if not ranked:
            continue
        first = next(row for row in group if not is_floor(row))
        heads = ["evaluations", "lowest", "second", "third"]
        lines = [
            (
                f"{protocol_words(group)}: the lowest {measure_words(first)} at each number of network evaluations; "
                "± is a standard error, z a difference in standard errors, * more than its error"
            ),
            "",
            "| " + " | ".join(heads) + " |",
            "|---:" + "|---" * PLACES + "|",
        ]
        for nfe, best in ranked.items():
            cells = [_cell(row, best[0], group) for row in best[:PLACES]]
            lines.append(f"| {nfe:g} | " + " | ".join(cells + [""] * (PLACES - len(cells))) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(row: dict, best: dict, group: list[dict]) -> str:
    words = f"{series_words(row, group)} {number_words(row['fid'], standard_error(row))}"
    errors = standard_error(row), standard_error(best)
    if row is best or None in errors or not hypot(*errors):
        return words
    z = (row["fid"] - best["fid"]) / hypot(*errors)
    return f"{words} (z = {z:.1f}{' *' * (z >= needed_z(row, best))})"
