"""samples.png: the samples behind the numbers, series by steps."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.pictures import read_png
from eval.curves.canvas import broken, look, pyplot, save, subject
from eval.curves.series import series_label, series_of
from eval.rows import OF_POINTS, Row
from eval.text import counted

SHOWN = 4  # samples in a cell


def plot_samples(group: list[Row], folder: Path, path: Path) -> list[Path]:
    """The kept samples: one row per series, one column per number of steps, the same noise (and
    classes) in every cell. Returns the files written: none if no samples are there to show.

    Args:
        folder: which the rows' `samples` are relative to, as core.pictures.samples_file allows
            them.
    """
    plt = pyplot()
    series = list(series_of(group).values())
    steps = sorted({row.steps for rows in series for row in rows})
    cells = [{row.steps: _strip(folder, row) for row in rows} for rows in series]
    if all(cell is None for line in cells for cell in line.values()):
        return []
    figure, grid = plt.subplots(
        len(series),
        len(steps),
        squeeze=False,
        figsize=(2.2 + 1.1 * len(steps), 0.7 + 1.2 * len(series)),
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.06, wspace=0.01, hspace=0.02)
    for line, rows, axes_row in zip(cells, series, grid):
        for axes, count in zip(axes_row, steps):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if (cell := line.get(count)) is not None:
                axes.imshow(cell, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes_row[0].set_ylabel(
            broken(series_label(rows[0], group), 22), rotation=0, ha="right", va="center",
            color=look(rows[0], group).color, fontsize=9, labelpad=6,
        )  # fmt: skip
    for axes, count in zip(grid[0], steps):
        axes.set_title(counted(count, "step"), fontsize=9)
    points = group[0].metric in OF_POINTS
    what = "samples, their density in yellow" if points else f"the first {SHOWN} samples"
    title = f"{subject(group)}: {what}, same noise in every cell"
    letters = int(11 * figure.get_figwidth())  # about 11 per inch
    figure.suptitle(broken(title, letters), fontsize=11)
    return save(figure, path, vector=False)


def _strip(folder: Path, row: Row) -> np.ndarray | None:
    """The first samples of a row as one picture of two columns, from its strip; None (with a
    warning) where it is gone."""
    if not row.samples:
        return None
    from PIL import Image

    try:
        png, width, side = read_png(folder / row.samples)
        if width % side:
            raise UserError(
                f"{folder / row.samples} is no strip: its width is no multiple of its height"
            )
    except UserError as error:
        print(f"warning: {error}; its cell stays empty", file=sys.stderr)
        return None
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB" if len(image.getbands()) > 1 else "L"))
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
