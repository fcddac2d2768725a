"""curves.png and seconds.png: distance against network evaluations, and against seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.curves.canvas import SMALL, broken, look, save, subject
from eval.curves.families import of_teacher
from eval.curves.front import Cost, evaluations, front, milliseconds, points
from eval.curves.labels import Curve, place_labels
from eval.curves.panels import BEST, DARK, Panel, draw_reference, panels
from eval.curves.seeds import errors_label
from eval.curves.series import floors_of, measured, series_of
from eval.rows import Row, distance_label
from eval.text import number, one_line

TICKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
# Times below the best point, a floor is told in words: its line would take half of the picture
FAR = 5


def timed(group: list[Row]) -> list[Row]:
    """The group's rows that say how many seconds an image took, and its floors."""
    return [row for row in group if row.is_floor or row.seconds_per_image]


def plot_curves(group: list[Row], path: Path, against: str = "nfe") -> list[Path]:
    """Distance against the cost per image, both logarithmic, for rows of one protocol; written as
    PNG and SVG beside each other, which are returned. One panel per family; with more than one,
    each also shows the front of the teacher over its solvers. Rings mark the Pareto front over all
    series of all panels.

    Args:
        against: "nfe" (network evaluations, counted), or "seconds" (of sampling, drawn as
            milliseconds), which every row must have. Times of several devices are drawn but not
            ranked: they get no front and no reference.
    """
    cost = evaluations if against == "nfe" else milliseconds
    ranked = against == "nfe" or len(_devices(group)) == 1
    figure, found = panels(group, single=(10, 6.2), size=(5.8, 4.4))
    axes = found[0].axes
    axes.set_xscale("log", base=2 if against == "nfe" else 10)
    axes.set_yscale("log")
    best = _reference(group, cost) if ranked and len(found) > 1 else None
    ends = [_panel(panel, best, cost) for panel in found]
    if ranked:
        _rings(found, front(measured(group), cost), cost)
    draw_floors([panel.axes for panel in found], group)
    scales(axes, group, cost)
    for panel in found:
        grid(panel.axes)
    _words(figure, found, group, against)
    figure.draw_without_rendering()  # settles the layout that the labels are placed in
    figure.set_layout_engine("none")
    for panel, curves in zip(found, ends):
        place_labels(panel.axes, curves)
    return save(figure, path)


def _reference(group: list[Row], cost: Cost) -> Curve | None:
    """The front of the teacher over its solvers, as far as the teacher was measured: more cost
    need not be spent. None without a teacher."""
    rows = of_teacher(group)
    if not rows:
        return None
    x, y = points(front(rows, cost), cost)
    most = max(map(cost, rows))
    if most > x[-1]:
        x, y = np.append(x, most), np.append(y, y[-1])
    return Curve(x, y, BEST, DARK)


def _panel(panel: Panel, best: Curve | None, cost: Cost) -> list[Curve]:
    """Draws the reference and the family's series; returns what their names need."""
    axes, curves = panel.axes, []
    if best:
        curves.append(draw_reference(panel, best))
    for rows in series_of(panel.rows).values():
        color, marker, dashes, _ = look(rows[0], panel.rows)
        x, y = points(rows, cost)
        # An error bar that reaches below zero would leave the logarithmic axis.
        std = np.array([row.bar or 0.0 for row in rows])
        bars = np.stack([np.minimum(std, 0.9 * y), std])
        axes.errorbar(
            x, y, yerr=bars, color=color, marker=marker, linestyle=dashes, markersize=5,
            linewidth=1.6, capsize=2.5, elinewidth=1, markeredgecolor="white", markeredgewidth=0.6,
            zorder=3,
        )  # fmt: skip
        curves.append(Curve(x, y, panel.label(rows[0]), color))
        ends = np.stack([y - bars[0], y + bars[1]], axis=1)
        curves += [Curve(np.full(2, at), bar, "", color) for at, bar in zip(x, ends)]
    return curves


def _rings(found: list[Panel], best: list[Row], cost: Cost) -> None:
    """Rings in each panel around its rows among `best`; a panel alone also has steps through
    them."""
    for panel in found:
        own = [row for row in best if any(row is other for other in panel.rows)]
        x, y = points(own, cost)
        if panel.alone:
            panel.axes.plot(x, y, drawstyle="steps-post", color="#888888", linewidth=0.8, zorder=2)
        panel.axes.scatter(
            x, y, s=85, facecolors="none", edgecolors="black", linewidths=0.9, zorder=4
        )


def draw_floors(several: list, group: list[Row]) -> None:
    """Each floor as a line in each of the axes, and its name in the last."""
    rows, told = measured(group), 0
    lowest = points(rows, evaluations)[1].min()
    for row in floors_of(group):
        words = f"{row.method}: {row.run}" + (f", n = {row.n}" if row.n != rows[0].n else "")
        dashes = (0, (1, 2)) if row.is_reconstruction else (0, (4, 3))
        if far := row.fid < lowest / FAR:
            several[0].set_ylim(bottom=lowest / 1.8)
            words += f": {number(row.fid, row.bar)}, below this picture"
        for axes in () if far else several:
            axes.axhline(row.fid, color="black", linestyle=dashes, linewidth=1, zorder=1)
        several[-1].annotate(
            one_line(words), (0.995, 0 if far else row.fid),
            xycoords=("axes fraction", "axes fraction" if far else "data"),
            xytext=(0, 3 + 12 * told), textcoords="offset points", ha="right", fontsize=9,
        )  # fmt: skip
        told += far  # words below the picture stand one above the other


def _devices(group: list[Row]) -> list[str]:
    return sorted({one_line(str(row.device)) for row in measured(group)})


def scales(axes, group: list[Row], cost: Cost) -> None:
    """Limits and ticks of both axes."""
    from matplotlib.ticker import (
        FixedLocator,
        FuncFormatter,
        LogLocator,
        NullFormatter,
        NullLocator,
    )

    costs = [cost(row) for row in measured(group)]
    if cost is evaluations:
        ticks = [t for t in TICKS if t <= max(2, max(costs) * 1.05)]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        # room for names beside the points at 1
        axes.set_xlim(min(0.8, max(costs) ** -0.045), max(2.0, *costs) * 1.35)
    else:
        dense = max(costs) < 200 * min(costs)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if dense else (1,)))
        axes.set_xlim(min(costs) / 1.35, max(costs) * 1.35)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def grid(axes) -> None:
    axes.grid(which="major", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def title(group: list[Row]) -> str:
    first = measured(group)[0]
    distance, _, taken_in = distance_label(first).partition(", ")
    return f"{subject(group)}: " + one_line(f"{distance} against {first.reference}, {taken_in}")


def _words(figure, found: list[Panel], group: list[Row], against: str) -> None:
    first = measured(group)[0]
    cost = (
        "network evaluations per image (counted)"
        if against == "nfe"
        else "milliseconds of sampling per image (in batches, wall clock)"
    )
    distance = one_line(distance_label(first))
    for panel in found:
        if panel.lowest:
            panel.axes.set_xlabel(cost)
    if alone := found[0].alone:
        found[0].axes.set(ylabel=distance, title=title(group))
    else:
        figure.suptitle(title(group), fontsize=12)
        figure.supylabel(distance, fontsize=10)
    notes = _notes(group, against, alone)
    # lines break between notes only
    kept = (one_line(note).replace(" ", "\N{NO-BREAK SPACE}") for note in notes)
    letters = int(15 * figure.get_figwidth())
    figure.supxlabel(broken("; ".join(kept), letters), **SMALL)


def _notes(group: list[Row], against: str, alone: bool) -> list[str]:
    """What all points of the picture have in common, and how to read it."""
    rows, errors, devices = measured(group), errors_label(measured(group)), _devices(group)
    notes = [f"error bars: ±1 {errors}"] if errors else []
    notes += [
        f"weights: {', '.join(sorted({row.weights for row in rows}))}",
        f"seed {', '.join(sorted({str(one.seed) for row in rows for one in row.members}))}",
        f"extractor sha256 {rows[0].extractor_sha256[:8]}",
    ]
    notes += [] if against == "nfe" else ["on " + " and ".join(devices)]
    if against == "nfe" or len(devices) == 1:
        over = "" if alone else " over all panels"
        notes.append(f"rings: Pareto front{over}, no other point is cheaper and better")
    else:
        notes.append("several devices: times do not compare")
    return notes
