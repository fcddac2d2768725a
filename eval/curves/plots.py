"""Pictures of curves.jsonl: distance against network evaluations and against seconds, and all
pictures of a file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from core.errors import UserError
from eval.curves.canvas import SMALL, broken, look, pyplot, save, subject
from eval.curves.coverage import covered, plot_coverage
from eval.curves.labels import place_labels
from eval.curves.pareto import pareto_front
from eval.curves.sample_grid import plot_samples
from eval.curves.series import (
    by_protocol,
    errors_label,
    floor_of,
    measured,
    protocol_label,
    series_label,
    series_of,
)
from eval.rows import Row, measure_label
from eval.text import file_name, number, one_line

TICKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
# Times below the best point, a floor is told in words: its line would take half of the picture
FAR = 5
LOWEST = 1e-3  # what a logarithmic axis shows of distances around zero


def timed(group: list[Row]) -> list[Row]:
    """The group's rows that say how many seconds an image took, and its floors."""
    return [row for row in group if row.is_floor or row.seconds_per_image]


def _cost(row: Row, against: str) -> float:
    return row.nfe if against == "nfe" else 1e3 * row.seconds_per_image


def plot_curves(group: list[Row], path: Path, against: str = "nfe") -> list[Path]:
    """Distance against the cost per image, both logarithmic, for rows of one protocol; written as
    PNG and SVG beside each other, which are returned. Rings mark the Pareto front over all series.

    Args:
        against: "nfe" (network evaluations, counted), or "seconds" (of sampling, drawn as
            milliseconds), which every row must have. Times of several devices are drawn but not
            ranked: they get no front.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(10, 6.2), layout="constrained")
    axes.set_xscale("log", base=2 if against == "nfe" else 10)
    axes.set_yscale("log")
    _axes(axes, group, against)
    ends = []
    for rows in series_of(group).values():
        color, marker, dashes, _ = look(rows[0], group)
        x = np.array([_cost(r, against) for r in rows])
        y = np.array([max(r.fid, LOWEST) for r in rows])
        # An error bar that reaches below zero would leave the logarithmic axis.
        std = np.array([r.fid_std or 0.0 for r in rows])
        bars = np.stack([np.minimum(std, 0.9 * y), std])
        axes.errorbar(
            x, y, yerr=bars, color=color, marker=marker, linestyle=dashes, markersize=5,
            linewidth=1.6, capsize=2.5, elinewidth=1, markeredgecolor="white", markeredgewidth=0.6,
            zorder=3,
        )  # fmt: skip
        ends.append((x, y, series_label(rows[0], group), color))
    _floor(axes, group, best=min(y.min() for _, y, _, _ in ends))
    _front(axes, group, against)
    figure.draw_without_rendering()  # settles the layout that the labels are placed in
    place_labels(axes, ends)
    return save(figure, path)


def _floor(axes, group: list[Row], best: float) -> None:
    row = floor_of(group)
    if row is None:
        return
    n = measured(group)[0].n
    words = f"floor: {row.run} against {row.reference}" + (f", n = {row.n}" if row.n != n else "")
    if far := row.fid < best / FAR:
        axes.set_ylim(bottom=best / 1.8)
        words += f": {number(row.fid, row.fid_std)}, below this picture"
    else:
        axes.axhline(row.fid, color="black", linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    axes.annotate(
        one_line(words), (0.995, 0 if far else row.fid),
        xycoords=("axes fraction", "axes fraction" if far else "data"), xytext=(0, 3),
        textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip


def _devices(group: list[Row]) -> list[str]:
    return sorted({one_line(str(row.device)) for row in measured(group)})


def _front(axes, group: list[Row], against: str) -> None:
    if against == "seconds" and len(_devices(group)) > 1:
        return
    points = [(_cost(row, against), max(row.fid, LOWEST)) for row in measured(group)]
    front = np.array([points[i] for i in pareto_front(points)])
    axes.plot(*front.T, drawstyle="steps-post", color="#888888", linewidth=0.8, zorder=2)
    axes.scatter(*front.T, s=85, facecolors="none", edgecolors="black", linewidths=0.9, zorder=4)


def _axes(axes, group: list[Row], against: str) -> None:
    from matplotlib.ticker import (
        FixedLocator,
        FuncFormatter,
        LogLocator,
        NullFormatter,
        NullLocator,
    )

    first, costs = measured(group)[0], [_cost(row, against) for row in measured(group)]
    if against == "nfe":
        ticks = [t for t in TICKS if t <= max(2, max(costs) * 1.05)]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        # room for names beside the points at 1
        axes.set_xlim(min(0.8, max(costs) ** -0.045), max(2.0, *costs) * 1.35)
        axes.set_xlabel("network evaluations per image (counted)")
    else:
        dense = max(costs) < 200 * min(costs)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if dense else (1,)))
        axes.set_xlim(min(costs) / 1.35, max(costs) * 1.35)
        axes.set_xlabel("milliseconds of sampling per image (in batches, wall clock)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    measure, features = measure_label(first), f"{first.extractor} features"
    axes.set_ylabel(one_line(f"{measure}, {features}"))
    axes.set_title(
        f"{subject(group)}: " + one_line(f"{measure} against {first.reference}, {features}")
    )
    axes.figure.supxlabel(broken(_notes(group, against), 150), **SMALL)


def _notes(group: list[Row], against: str) -> str:
    """What all points of the picture have in common, and how to read it."""
    rows, errors, devices = measured(group), errors_label(measured(group)), _devices(group)
    notes = [f"error bars: ±1 standard deviation ({errors})"] if errors else []
    notes += [
        f"weights: {', '.join(sorted({row.ema for row in rows}))}",
        f"seed {', '.join(sorted({str(row.seed) for row in rows}))}",
        f"extractor sha256 {rows[0].extractor_sha256[:8]}",
    ]
    notes += [] if against == "nfe" else ["on " + " and ".join(devices)]
    if against == "nfe" or len(devices) == 1:
        notes.append("rings: Pareto front, no other point is cheaper and better")
    else:
        notes.append("several devices: times do not compare")
    # lines break between notes only
    return "; ".join(one_line(note).replace(" ", "\N{NO-BREAK SPACE}") for note in notes)


def plot_all(rows: list[Row], folder: Path, out: Path) -> list[Path]:
    """curves.png, coverage.png and seconds.png (and .svg) and samples.png for each protocol among
    `rows`; from the second on, names say which. There is no seconds.png where no row has its
    time, and no coverage.png where none has precision and recall.

    Raises:
        UserError: nothing but floors to draw.
    """
    groups = by_protocol(rows)
    if not groups:
        raise UserError("no measured points to draw: run python -m scripts.evaluate first")
    written, drawn, suffixes = [], set(), set()
    for i, group in enumerate(groups):
        suffix = _suffix(group, i, suffixes)
        suffixes.add(suffix)
        written += plot_curves(group, out / f"curves{suffix}.png")
        print(f"{written[-2]}: {protocol_label(group)}", file=sys.stderr)
        if measured(covered(group)):
            written += plot_coverage(covered(group), out / f"coverage{suffix}.png")
        if measured(timed(group)):
            written += plot_curves(timed(group), out / f"seconds{suffix}.png", "seconds")
        shown = frozenset(row.samples for row in group if row.samples)
        if shown not in drawn:
            drawn.add(shown)
            written += plot_samples(group, folder, out / f"samples{suffix}.png")
    return written


def _suffix(group: list[Row], place: int, taken: set[str]) -> str:
    """What tells a group's files from those of the others."""
    if place == 0:
        return ""
    protocol = group[0].protocol
    words = [protocol.dataset, protocol.extractor, protocol.n]
    if "-" + file_name(words) in taken:
        words.append(protocol.reference.split()[-1] if protocol.reference.split() else "")
    suffix = "-" + file_name(words)
    return f"{suffix}-{place}" if suffix in taken else suffix  # hashes differ, which name nothing
