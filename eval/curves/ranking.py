"""Which series is best at each number of network evaluations, and whether by more than its
error."""

from __future__ import annotations

from math import hypot

from eval.curves.compare import needed_z, standard_error
from eval.curves.series import by_protocol, measured, protocol_label, series_label
from eval.rows import Row, measure_label
from eval.text import markdown, markdown_table, number

PLACES = 3


def ranking(group: list[Row]) -> dict[float, list[Row]]:
    """NFE -> rows of one protocol, best first, where at least two series were measured. Of equal
    rows (solvers that are the same in one step) the first stands for all."""
    points: dict[float, list[Row]] = {}
    for row in measured(group):
        points.setdefault(round(row.nfe, 6), []).append(row)
    ranked = {}
    for nfe, rows in sorted(points.items()):
        unlike = {(row.weights_sha256, round(row.fid, 4)): row for row in reversed(rows)}
        if len(unlike) > 1:
            ranked[nfe] = sorted(unlike.values(), key=lambda row: row.fid)
    return ranked


def ranking_tables(rows: list[Row]) -> str:
    """Markdown, one table per protocol: the first three at each NFE; z is the distance to the first
    in standard errors of the difference, taken as independent; an asterisk where it is more than
    its error (eval/curves/compare.py)."""
    parts = []
    for group in by_protocol(rows):
        ranked = ranking(group)
        if not ranked:
            continue
        title = (
            f"{protocol_label(group)}: the lowest {measure_label(measured(group)[0])} at each "
            "number of network evaluations; ± is a standard error, z a difference in standard errors, "
            "* more than its error"
        )
        body = []
        for nfe, best in ranked.items():
            cells = [_cell(row, best[0], group) for row in best[:PLACES]]
            body.append([f"{nfe:g}", *cells, *[""] * (PLACES - len(cells))])
        header = ["evaluations", "lowest", "second", "third"]
        parts.append(f"{markdown(title)}\n\n{markdown_table(header, body, left=len(header))}")
    return "\n\n".join(parts)


def _cell(row: Row, best: Row, group: list[Row]) -> str:
    words = f"{series_label(row, group)} {number(row.fid, standard_error(row))}"
    errors = standard_error(row), standard_error(best)
    if row is best or None in errors or not hypot(*errors):
        return words
    z = (row.fid - best.fid) / hypot(*errors)
    return f"{words} (z = {z:.1f}{' *' * (z >= needed_z(row, best))})"
