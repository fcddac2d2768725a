"""Speed, quality and mode coverage beside each other: what a generator gives up for what (Xiao et
al. 2022, fig. 1)."""

from __future__ import annotations

from eval.curves.table import number_words, protocol_words, series_words
from eval.rows import by_protocol, is_floor, measure_words, series_key


def class_distance(row: dict, floor: dict | None) -> float | None:
    """Total variation distance between the classes that the classifier sees in the samples and in
    real images: the share of samples that would have to be of another class. Without a floor, in
    place of real images: all classes alike.

    None where the extractor is no classifier of this data.
    """
    seen = row.get("class_histogram")
    if seen is None:
        return None
    real = (floor or {}).get("class_histogram") or [1] * len(seen)
    return 0.5 * sum(abs(a / sum(seen) - b / sum(real)) for a, b in zip(seen, real, strict=True))


def chosen_rows(group: list[dict]) -> list[dict]:
    """Of each series the cheapest point and the best one, in order of appearance."""
    series: dict[tuple, list[dict]] = {}
    for row in group:
        if not is_floor(row):
            series.setdefault(series_key(row), []).append(row)
    chosen = []
    for rows in series.values():
        cheapest, best = min(rows, key=lambda r: r["nfe"]), min(rows, key=lambda r: r["fid"])
        chosen += [cheapest] if best is cheapest else [cheapest, best]
    return chosen


def trade_off_tables(rows: list[dict]) -> str:
    """Markdown, one table a protocol: cost, quality and coverage of each series at its cheapest and
    at its best point."""
    parts = []
    for group in by_protocol(rows):
        floor = next(filter(is_floor, group), None)
        shown = chosen_rows(group) + ([floor] if floor else [])
        first = next((row for row in group if not is_floor(row)), None)
        if first is None:
            continue
        header = [
            "",
            "evaluations",
            "ms an image",
            measure_words(first),
            "precision",
            "recall",
            "classes off",
        ]
        lines = [
            f"{protocol_words(group)}; each series at its cheapest and at its best number of steps",
            "",
        ]
        lines += ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
        for row in shown:
            off = class_distance(row, floor)
            cells = [
                series_words(row, group)
                + ("" if is_floor(row) else f", {row['steps']} step{'s' * (row['steps'] > 1)}"),
                "" if is_floor(row) else f"{row['nfe']:g}",
                f"{1e3 * row['seconds_per_image']:.3g}" if row.get("seconds_per_image") else "",
                number_words(row["fid"], row["fid_std"]),
                *("" if row[key] is None else f"{row[key]:.3f}" for key in ("precision", "recall")),
                f"{100 * off:.1f} %" if off is not None else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
