"""Rows of curves as a table, methods by steps, for terminals and for Markdown."""

from __future__ import annotations

from eval.curves.seeds import count_of, errors_label
from eval.curves.series import by_protocol, floors_of, protocol_label, series_label, series_of
from eval.rows import Row
from eval.text import markdown, markdown_table, number, text_table


def curve_cells(group: list[Row], steps: list[int] | None = None) -> list[list[str]]:
    """Header and body of one group's table: its series and its floors by steps (None: all that any
    series has; a floor stands in the first column). A column says how many training seeds each
    series has, where any has several."""
    series = [{row.steps: row for row in points} for points in series_of(group).values()]
    if steps is None:
        steps = sorted({step for points in series for step in points})
    counts = [count_of(points.values()) for points in series]
    several = any(count != "1" for count in counts)
    body = []
    for points, count in zip(series, counts, strict=True):
        cells = [number(points[s].fid, points[s].bar) if s in points else "" for s in steps]
        name = series_label(next(iter(points.values())), group)
        body.append([name, *[count] * several, *cells])
    for floor in floors_of(group):
        cells = [number(floor.fid, floor.bar), *[""] * (len(steps) - 1)]
        body.append([series_label(floor, group), *[""] * several, *cells])
    return [["steps", *["seeds"] * several, *map(str, steps)], *body]


def _title(group: list[Row]) -> str:
    errors = errors_label(group)
    return protocol_label(group) + (f"; ± is a {errors}" if errors else "")


def text_tables(rows: list[Row]) -> str:
    """One aligned table for each protocol."""
    groups = by_protocol(rows)
    return "\n\n".join(f"{_title(group)}\n{text_table(curve_cells(group))}" for group in groups)


def markdown_tables(rows: list[Row]) -> str:
    """The same as Markdown."""
    parts = []
    for group in by_protocol(rows):
        header, *body = curve_cells(group)
        parts.append(f"{markdown(_title(group))}\n\n{markdown_table(header, body)}")
    return "\n\n".join(parts)
