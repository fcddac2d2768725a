"""Pictures of curves.jsonl: distance against network evaluations and against seconds, and the
samples behind the numbers. Loads matplotlib late."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np

from core.errors import UserError
from eval.curves.labels import place_labels
from eval.curves.pareto import pareto_front
from eval.curves.style import Look, look_of, read_styles
from eval.curves.table import number_words, protocol_words, series_words
from eval.rows import by_protocol, is_floor, measure_words, series_key

TICKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
FAR = 5  # times below the best point, a floor is told in words, since its line would take half of the picture
SHOWN = 4  # samples in a cell of the grid of samples


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "0",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 12,
        }
    )
    from matplotlib import pyplot

    return pyplot


def series_of(group: list[dict]) -> dict[tuple, list[dict]]:
    """The group's measured points by series, each sorted by NFE."""
    series: dict[tuple, list[dict]] = {}
    for row in group:
        if not is_floor(row):
            series.setdefault(series_key(row), []).append(row)
    return {key: sorted(rows, key=lambda r: r["nfe"]) for key, rows in series.items()}


def _look(row: dict, group: list[dict]) -> Look:
    methods = [r["method"] for r in group if not is_floor(r)]
    return look_of(row["method"], row["sampler"], methods, read_styles())


def _name(row: dict, group: list[dict]) -> str:
    """The series in words, the method by its label; without it where all in the picture are of one,
    which its title names."""
    words = series_words(row, group).removeprefix(row["method"]).strip()
    return words if one_method(group) else f"{_look(row, group).label}, {words}"


def one_method(group: list[dict]) -> bool:
    return len({row["method"] for row in group if not is_floor(row)}) == 1


def subject(group: list[dict]) -> str:
    """What a title begins with: the data set, and the method where there is one only."""
    first = next(row for row in group if not is_floor(row))
    return (
        f"{first['dataset']}, {_look(first, group).label}"
        if one_method(group)
        else first["dataset"]
    )


def timed(group: list[dict]) -> list[dict]:
    """The group's rows that say how many seconds an image took, and its floors."""
    return [row for row in group if is_floor(row) or row.get("seconds_per_image")]


def _cost(row: dict, against: str) -> float:
    return row["nfe"] if against == "nfe" else 1e3 * row["seconds_per_image"]


def plot_curves(group: list[dict], path: Path, against: str = "nfe") -> None:
    """Distance against the cost of an image, both logarithmic, for rows of one protocol; written as
    PNG and SVG beside each other. Rings mark the Pareto front over all series.

    Args:
        against: "nfe" (network evaluations, counted), or "seconds" (of sampling, drawn as
            milliseconds), which every row must have. Times of several devices are drawn but not
            ranked: they get no front.

    Raises:
        UserError: nothing but a floor to draw.
    """
    plt = _pyplot()
    series = series_of(group)
    if not series:
        raise UserError("no measured points to draw: run python -m scripts.evaluate first")
    figure, axes = plt.subplots(figsize=(10, 6.2), layout="constrained")
    axes.set_xscale("log", base=2 if against == "nfe" else 10)
    axes.set_yscale("log")
    ends = []
    for rows in series.values():
        look = _look(rows[0], group)
        x, y = (
            np.array([_cost(r, against) for r in rows]),
            np.array([max(r["fid"], 1e-3) for r in rows]),
        )
        # An error bar that reaches below zero would leave the logarithmic axis.
        std = np.array([r["fid_std"] or 0.0 for r in rows])
        bars = np.stack([np.minimum(std, 0.9 * y), std])
        axes.errorbar(
            x, y, yerr=bars, color=look.color, marker=look.marker, linestyle=look.dashes, markersize=5, linewidth=1.6,
            capsize=2.5, elinewidth=1, markeredgecolor="white", markeredgewidth=0.6, zorder=3,
        )  # fmt: skip
        ends.append((x, y, _name(rows[0], group), look.color))
    best = min(y.min() for _, y, _, _ in ends)
    for row in filter(is_floor, group):
        words = f"floor: {row['run']} against {row['reference']}" + (
            f", n = {row['n']}" if row["n"] != n_of(group) else ""
        )
        if far := row["fid"] < best / FAR:
            axes.set_ylim(bottom=best / 1.8)
            words += f": {number_words(row['fid'], row['fid_std'])}, below this picture"
        else:
            axes.axhline(row["fid"], color="black", linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        axes.annotate(
            words, (0.995, 0 if far else row["fid"]), xycoords=("axes fraction", "axes fraction" if far else "data"),
            xytext=(0, 3), textcoords="offset points", ha="right", fontsize=9,
        )  # fmt: skip
    _front(axes, group, against)
    _axes(axes, group, against)
    figure.draw_without_rendering()  # settles the layout that the labels are placed in
    place_labels(axes, ends)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def plot_trade_off(group: list[dict], path: Path) -> None:
    """Recall (how much of the data is covered) against precision (how much of the samples is
    data-like) for rows of one protocol, each series walking with its steps; the numbers are
    evaluations. Written as PNG and SVG."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7.5, 6.2), layout="constrained")
    ends = []
    for rows in series_of(group).values():
        look = _look(rows[0], group)
        x, y = (np.array([r[key] for r in rows]) for key in ("precision", "recall"))
        axes.plot(
            x, y, color=look.color, marker=look.marker, linestyle=look.dashes, markersize=5, linewidth=1.2,
            markeredgecolor="white", markeredgewidth=0.6, zorder=3,
        )  # fmt: skip
        if len(rows) > 1:
            axes.annotate(
                f"{rows[0]['nfe']:g}", (x[0], y[0]), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=7,
                color=look.color,
            )  # fmt: skip
        ends.append((x, y, _name(rows[0], group), look.color))
    for row in filter(is_floor, group):
        axes.plot(
            row["precision"],
            row["recall"],
            marker="*",
            markersize=13,
            color="black",
            linestyle="",
            zorder=5,
        )
        ends.append(
            (
                np.array([row["precision"]]),
                np.array([row["recall"]]),
                f"real: {row['run']}",
                "black",
            )
        )
    first = next(row for row in group if not is_floor(row))
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("precision: share of samples within the data's neighbourhoods")
    axes.set_ylabel("recall: share of the data within the samples' neighbourhoods")
    title = [
        f"{subject(group)}: quality and mode coverage, n = {first['n']},",
        f"{first['extractor']} features",
    ]
    axes.set_title(("\n" if len("".join(title)) > 80 else " ").join(title))
    figure.supxlabel(
        "small numbers: evaluations at the start of a curve, which walks on with its steps",
        fontsize=7.5,
        color="#555555",
    )
    figure.draw_without_rendering()
    place_labels(axes, ends)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def n_of(group: list[dict]) -> int:
    """The n of the group's measured points."""
    return next(row["n"] for row in group if not is_floor(row))


def _devices(group: list[dict]) -> list[str]:
    return sorted({str(row.get("device")) for row in group if not is_floor(row)})


def _front(axes, group: list[dict], against: str) -> None:
    if against == "seconds" and len(_devices(group)) > 1:
        return
    points = [(_cost(row, against), max(row["fid"], 1e-3)) for row in group if not is_floor(row)]
    front = np.array([points[i] for i in pareto_front(points)])
    axes.plot(*front.T, drawstyle="steps-post", color="#888888", linewidth=0.8, zorder=2)
    axes.scatter(*front.T, s=85, facecolors="none", edgecolors="black", linewidths=0.9, zorder=4)


def _axes(axes, group: list[dict], against: str) -> None:
    from matplotlib.ticker import (
        FixedLocator,
        FuncFormatter,
        LogLocator,
        NullFormatter,
        NullLocator,
    )

    measured = [row for row in group if not is_floor(row)]
    costs = [_cost(row, against) for row in measured]
    first = measured[0]
    if against == "nfe":
        axes.xaxis.set_major_locator(
            FixedLocator([t for t in TICKS if t <= max(2, max(costs) * 1.05)])
        )
        axes.set_xlim(
            min(0.8, max(costs) ** -0.045), max(2.0, *costs) * 1.35
        )  # room for names beside the points at 1
        axes.set_xlabel("network evaluations an image (counted)")
    else:
        axes.xaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if max(costs) < 200 * min(costs) else (1,))
        )
        axes.set_xlim(min(costs) / 1.35, max(costs) * 1.35)
        axes.set_xlabel("milliseconds of sampling an image (in batches, wall clock)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylabel(f"{measure_words(first)}, {first['extractor']} features")
    measure = measure_words(first)
    axes.set_title(
        f"{subject(group)}: {measure} against {first['reference']}, {first['extractor']} features"
    )
    errors = ", ".join(sorted({row["fid_error"] for row in measured if row["fid_error"]}))
    emas = ", ".join(sorted({row["ema"] for row in measured}))
    seeds = ", ".join(sorted({str(row["seed"]) for row in measured}))
    notes = [f"error bars: ±1 standard deviation ({errors})"] if errors else []
    notes += [
        f"weights: {emas}",
        f"seed {seeds}",
        f"extractor sha256 {first['extractor_sha256'][:8]}",
    ]
    devices = _devices(group)
    notes += [] if against == "nfe" else ["on " + " and ".join(devices)]
    if against == "nfe" or len(devices) == 1:
        notes.append("rings: Pareto front, no other point is cheaper and better")
    else:
        notes.append("several devices: times do not compare")
    whole = "; ".join(
        note.replace(" ", "\N{NO-BREAK SPACE}") for note in notes
    )  # lines break between notes only
    axes.figure.supxlabel(_broken(whole, 150), fontsize=7.5, color="#555555")


def plot_samples(group: list[dict], folder: Path, path: Path) -> bool:
    """The kept samples: a row a series, a column a number of steps, the same noise (and classes) in
    every cell.

    Args:
        folder: of the curves file, which the rows' `samples` are relative to.

    Returns:
        False if no samples are there to show.
    """
    plt = _pyplot()
    series = series_of(group)
    steps = sorted({row["steps"] for rows in series.values() for row in rows})
    cells = {
        (key, row["steps"]): _strip(folder, row) for key, rows in series.items() for row in rows
    }
    if all(cell is None for cell in cells.values()):
        return False
    figure, grid = plt.subplots(
        len(series),
        len(steps),
        squeeze=False,
        figsize=(2.2 + 1.1 * len(steps), 0.7 + 1.2 * len(series)),
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.06, wspace=0.01, hspace=0.02)
    for axes_row, (key, rows) in zip(grid, series.items()):
        for axes, count in zip(axes_row, steps):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            cell = cells.get((key, count))
            if cell is not None:
                axes.imshow(cell, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        look = _look(rows[0], group)
        words = _name(rows[0], group)
        axes_row[0].set_ylabel(
            _broken(words),
            rotation=0,
            ha="right",
            va="center",
            color=look.color,
            fontsize=9,
            labelpad=6,
        )
    for axes, count in zip(grid[0], steps):
        axes.set_title(f"{count} step{'s' * (count > 1)}", fontsize=9)
    title = f"{subject(group)}: the first {SHOWN} samples, same noise in every cell"
    figure.suptitle(
        _broken(title, int(11 * figure.get_figwidth())), fontsize=11
    )  # about 11 letters an inch
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return True


def _broken(words: str, width: int = 22) -> str:
    return "\n".join(textwrap.wrap(words, width))


def _strip(folder: Path, row: dict) -> np.ndarray | None:
    """The first samples of a row as one picture of two columns, from its strip; None (with a
    warning) where it is gone."""
    if not row["samples"]:
        return None
    from PIL import Image

    file = folder / row["samples"]
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image)
    except OSError:
        print(f"warning: {file} is missing or damaged; its cell stays empty", file=sys.stderr)
        return None
    side = pixels.shape[0]
    images = [pixels[:, i : i + side] for i in range(0, min(SHOWN * side, pixels.shape[1]), side)]
    gap = max(1, side // 16)
    columns = min(2, len(images))
    lines = -(-len(images) // columns)
    shape = (lines * (side + gap) - gap, columns * (side + gap) - gap, *pixels.shape[2:])
    cell = np.full(shape, 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (side + gap), (i % columns) * (side + gap)
        cell[y : y + side, x : x + side] = image
    return cell


def plot_all(rows: list[dict], folder: Path, out: Path) -> list[Path]:
    """curves.png, coverage.png and seconds.png (and .svg) and samples.png for each protocol among
    `rows`; from the second on, names say which. There is no seconds.png where no row has its
    time."""
    groups = [group for group in by_protocol(rows) if not all(map(is_floor, group))]
    if not groups:
        raise UserError("no measured points to draw: run python -m scripts.evaluate first")
    written, drawn, suffixes = [], set(), set()
    for i, group in enumerate(groups):
        first = next(row for row in group if not is_floor(row))
        suffix = (
            ""
            if i == 0
            else f"-{first['dataset']}-{first['extractor']}-{first['n']}".replace(" ", "-")
        )
        if suffix in suffixes:
            suffix += f"-{first['reference'].split()[-1]}"
        if suffix in suffixes:  # they differ in hashes, which name nothing
            suffix += f"-{i}"
        suffixes.add(suffix)
        plot_curves(group, out / f"curves{suffix}.png")
        written += [out / f"curves{suffix}.png", out / f"curves{suffix}.svg"]
        print(f"{out / f'curves{suffix}.png'}: {protocol_words(group)}", file=sys.stderr)
        if series_of(covered := [row for row in group if row.get("recall") is not None]):
            plot_trade_off(covered, out / f"coverage{suffix}.png")
            written += [out / f"coverage{suffix}.png", out / f"coverage{suffix}.svg"]
        if series_of(with_time := timed(group)):
            plot_curves(with_time, out / f"seconds{suffix}.png", "seconds")
            written += [out / f"seconds{suffix}.png", out / f"seconds{suffix}.svg"]
        shown = frozenset(row["samples"] for row in group if row.get("samples"))
        if shown not in drawn and plot_samples(group, folder, out / f"samples{suffix}.png"):
            drawn.add(shown)
            written.append(out / f"samples{suffix}.png")
    return written
