"""Speed, quality and mode coverage beside each other: what a generator gives up for what (Xiao et
al. 2022, fig. 1)."""

from __future__ import annotations

from eval.curves.series import (
    by_protocol,
    floor_of,
    floors_of,
    measured,
    point_label,
    protocol_label,
    series_of,
)
from eval.rows import Row, measure_label
from eval.text import markdown, markdown_table, number


def class_distance(row: Row, floor: Row | None) -> float | None:
    """Total variation distance between the classes that the classifier sees in the samples and in
    real images: the share of samples that would have to be of another class. Without a floor, in
    place of real images: all classes alike.

    None where the extractor is no classifier of this data.
    """
    seen = row.class_histogram
    if seen is None:
        return None
    real = (floor and floor.class_histogram) or (1,) * len(seen)
    if len(real) != len(seen):
        return None
    return 0.5 * sum(abs(a / sum(seen) - b / sum(real)) for a, b in zip(seen, real, strict=True))


def chosen_rows(group: list[Row]) -> list[Row]:
    """Of each series the cheapest point and the best one, in order of appearance."""
    chosen = []
    for points in series_of(group).values():
        cheapest, best = points[0], min(points, key=lambda row: row.fid)
        chosen += [cheapest] if best is cheapest else [cheapest, best]
    return chosen


def trade_off_cells(group: list[Row], chosen: list[Row]) -> list[list[str]]:
    """Header and body of one group's table: cost, quality and coverage of the chosen rows, and of
    the floors."""
    floor = floor_of(group)
    measure = measure_label(measured(group)[0])
    header = ["", "evaluations", "ms per image", measure, "precision", "recall", "classes off"]
    return [header, *(_cells(row, floor, group) for row in [*chosen, *floors_of(group)])]


def trade_off_tables(rows: list[Row]) -> str:
    """Markdown, one table per protocol: cost, quality and coverage of each series at its cheapest
    and at its best point."""
    parts = []
    for group in by_protocol(rows):
        header, *body = trade_off_cells(group, chosen_rows(group))
        title = (
            f"{protocol_label(group)}; each series at its cheapest and at its best number of steps"
        )
        parts.append(f"{markdown(title)}\n\n{markdown_table(header, body)}")
    return "\n\n".join(parts)


def _cells(row: Row, floor: Row | None, group: list[Row]) -> list[str]:
    off = class_distance(row, floor)
    return [
        point_label(row, group),
        "" if row.is_floor else f"{row.nfe:g}",
        f"{1e3 * row.seconds_per_image:.3g}" if row.seconds_per_image else "",
        number(row.fid, row.bar),
        *("" if share is None else f"{share:.3f}" for share in (row.precision, row.recall)),
        f"{100 * off:.1f} %" if off is not None else "",
    ]
