"""coverage.png: recall against precision, each series walking with its steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.curves.canvas import SMALL, look, pyplot, save, subject
from eval.curves.labels import place_labels
from eval.curves.series import floor_of, measured, series_label, series_of
from eval.rows import Row
from eval.text import one_line


def covered(group: list[Row]) -> list[Row]:
    """The group's rows with precision and recall."""
    return [row for row in group if None not in (row.precision, row.recall)]


def plot_coverage(group: list[Row], path: Path) -> list[Path]:
    """Recall (how much of the data is covered) against precision (how much of the samples is
    data-like) for `covered` rows of one protocol; the numbers are evaluations. Written as PNG and
    SVG; returns the files."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.5, 6.2), layout="constrained")
    ends = []
    for rows in series_of(group).values():
        color, marker, dashes, _ = look(rows[0], group)
        x, y = (np.array([getattr(r, key) for r in rows]) for key in ("precision", "recall"))
        axes.plot(
            x, y, color=color, marker=marker, linestyle=dashes, markersize=5, linewidth=1.2,
            markeredgecolor="white", markeredgewidth=0.6, zorder=3,
        )  # fmt: skip
        if len(rows) > 1:
            axes.annotate(
                f"{rows[0].nfe:g}", (x[0], y[0]), xytext=(0, 5), textcoords="offset points",
                ha="center", fontsize=7, color=color,
            )  # fmt: skip
        ends.append((x, y, series_label(rows[0], group), color))
    if floor := floor_of(group):
        x, y = np.array([floor.precision]), np.array([floor.recall])
        axes.plot(x, y, marker="*", markersize=13, color="black", linestyle="", zorder=5)
        ends.append((x, y, one_line(f"real: {floor.run}"), "black"))
    first = measured(group)[0]
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("precision: share of samples within the data's neighbourhoods")
    axes.set_ylabel("recall: share of the data within the samples' neighbourhoods")
    title = [
        f"{subject(group)}: quality and mode coverage, n = {first.n},",
        one_line(f"{first.extractor} features"),
    ]
    axes.set_title(("\n" if len("".join(title)) > 80 else " ").join(title))
    figure.supxlabel(
        "small numbers: evaluations at the start of a curve, which walks on with its steps", **SMALL
    )
    figure.draw_without_rendering()
    place_labels(axes, ends)
    return save(figure, path)
