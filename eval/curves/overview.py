"""overview.png: which family is best at each number of evaluations, and by which method."""

from __future__ import annotations

import itertools
from pathlib import Path

from eval.curves.canvas import SMALL, pyplot, save
from eval.curves.distances import draw_floors, grid, scales, title
from eval.curves.families import by_family
from eval.curves.front import evaluations, front, points
from eval.curves.labels import Curve, place_labels
from eval.curves.series import measured, method_label, series_of
from eval.curves.style import FAMILIES
from eval.rows import Row, distance_label
from eval.text import one_line


def plot_overview(group: list[Row], path: Path) -> list[Path]:
    """Distance against network evaluations, both logarithmic, for rows of one protocol: thin lines
    are series, a thick one is the front of a family, in its colour, with the names of the methods
    that make it. Written as PNG and SVG; returns the files."""
    figure, axes = pyplot().subplots(figsize=(10, 5.6), layout="constrained")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ends = []
    for name, rows in by_family(group).items():
        family = FAMILIES[name]
        for series in series_of(rows).values():
            x, y = points(series, evaluations)
            axes.plot(x, y, ".-", color=family.color, alpha=0.3, linewidth=1, zorder=2)
        best = front(rows, evaluations)
        x, y = points(best, evaluations)
        axes.plot(
            x, y, "o-", color=family.color, linewidth=2.6, markersize=6, zorder=4,
            markeredgecolor="white", markeredgewidth=0.8, label=family.title,
        )  # fmt: skip
        ends.append(Curve(x, y, "", family.color))
        for method, won in itertools.groupby(best, key=lambda row: row.method):
            label = one_line(method_label(method))
            ends.append(Curve(*points(list(won), evaluations), label, family.color))
    draw_floors([axes], group)
    scales(axes, group, evaluations)
    grid(axes)
    first = measured(group)[0]
    axes.set_xlabel("network evaluations per image (counted)")
    axes.set_ylabel(one_line(distance_label(first)))
    axes.set_title(title(group))
    axes.legend(loc="upper right", frameon=False, fontsize=10)
    figure.supxlabel(
        "thick: the best that a family reaches with so many evaluations, and the methods that do; "
        "thin: every method and sampler", **SMALL,
    )  # fmt: skip
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    place_labels(axes, ends)
    return save(figure, path)
