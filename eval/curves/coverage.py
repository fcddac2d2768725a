"""coverage.png: recall against precision, each series walking with its steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.curves.canvas import SMALL, broken, look, save, subject
from eval.curves.distances import grid
from eval.curves.families import of_teacher
from eval.curves.front import evaluations, front
from eval.curves.labels import Curve, place_labels
from eval.curves.panels import BEST, DARK, Panel, draw_reference, panels
from eval.curves.series import floor_of, measured, series_of
from eval.rows import Row
from eval.text import one_line


def covered(group: list[Row]) -> list[Row]:
    """The group's rows with precision and recall."""
    return [row for row in group if None not in (row.precision, row.recall)]


def plot_coverage(group: list[Row], path: Path) -> list[Path]:
    """Recall (how much of the data is covered) against precision (how much of the samples is
    data-like) for `covered` rows of one protocol; the numbers are evaluations. One panel per
    family; with more than one, each also shows the teacher's best solver. Written as PNG and SVG;
    returns the files."""
    figure, found = panels(group, single=(7.5, 6.2), size=(5.8, 4.8))
    best = [] if found[0].alone else front(of_teacher(group), evaluations)
    ends = [_panel(panel, best, floor_of(group)) for panel in found]
    first = measured(group)[0]
    for panel in found:
        grid(panel.axes)
    words = f"{subject(group)}: quality and mode coverage, n = {first.n}, " + one_line(
        f"{first.extractor} features"
    )
    width = figure.get_figwidth()
    figure.suptitle(broken(words, int(10.5 * width)), fontsize=12)
    figure.supylabel("recall: share of the data within the samples' neighbourhoods", fontsize=10)
    axis = "precision: share of samples within the data's neighbourhoods"
    notes = "small numbers: evaluations at the start of a curve, which walks on with its steps"
    for panel in found:
        if panel.lowest:
            panel.axes.set_xlabel(axis)
    figure.supxlabel(notes, **SMALL)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for panel, curves in zip(found, ends):
        place_labels(panel.axes, curves)
    return save(figure, path)


def _panel(panel: Panel, best: list[Row], floor: Row | None) -> list[Curve]:
    """Draws the reference, the family's series and real images; returns what their names need."""
    axes, curves = panel.axes, []
    if best:
        curves.append(draw_reference(panel, Curve(*_points(best), BEST, DARK)))
    for rows in series_of(panel.rows).values():
        color, marker, dashes, _ = look(rows[0], panel.rows)
        x, y = _points(rows)
        axes.plot(
            x, y, color=color, marker=marker, linestyle=dashes, markersize=5, linewidth=1.2,
            markeredgecolor="white", markeredgewidth=0.6, zorder=3,
        )  # fmt: skip
        if len(rows) > 1:
            axes.annotate(
                f"{rows[0].nfe:g}", (x[0], y[0]), xytext=(0, 5), textcoords="offset points",
                ha="center", fontsize=7, color=color,
            )  # fmt: skip
        curves.append(Curve(x, y, panel.label(rows[0]), color))
    if floor:
        x, y = _points([floor])
        axes.plot(x, y, marker="*", markersize=13, color="black", linestyle="", zorder=5)
        curves.append(Curve(x, y, one_line(f"real: {floor.run}"), "black"))
    return curves


def _points(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row.precision for row in rows]), np.array([row.recall for row in rows])
