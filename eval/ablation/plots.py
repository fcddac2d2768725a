"""A picture for each axis of a study: every level at every point, with a line for each seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.ablation.results import Study, figures_of, point_of
from eval.ablation.table import spread
from eval.curves.canvas import SMALL, broken, pyplot, save
from eval.curves.seeds import mean_and_error
from eval.rows import measure_label
from eval.text import file_name


def plot_axes(study: Study, folder: Path) -> list[Path]:
    """Writes axis-NAME.png for each axis that has something to show, and returns the files."""
    figures, written = figures_of(study), []
    plt = pyplot()
    for place, axis in enumerate(study.config.factors):
        panels = [(f.results.point, spread(f.results, place)) for f in figures]
        panels = [(point, found) for point, found in panels if found]
        if not panels:
            continue
        size = (max(4.5, 2.6 * len(panels)), 3.8)
        figure, drawn = plt.subplots(1, len(panels), figsize=size, squeeze=False)
        for ax, (point, found) in zip(drawn[0], panels, strict=True):
            _panel(ax, point, found)
        rows = [row for row in study.rows if not row.is_floor]
        names = {point_of(row, study.config): measure_label(row) for row in rows}
        before = None
        for ax, (point, _) in zip(drawn[0], panels, strict=True):
            if names[point] != before:  # said once for the panels that share it
                ax.set_ylabel(names[point])
            before = names[point]
        figure.suptitle(broken(f"{rows[0].dataset}: {axis}", 60))
        figure.text(0.01, 0.01, "mean over seeds ± standard error; a line for each seed", **SMALL)
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        written += save(figure, folder / f"axis-{file_name([axis])}.png", vector=False)
    return written


def _panel(ax, point: str, found: dict[str, np.ndarray]) -> None:
    values = np.array(list(found.values()))  # [levels, seeds]
    for seed in values[:, ~np.isnan(values).any(0)].T:
        ax.plot(range(len(values)), seed, color="#BBBBBB", linewidth=0.8, marker=".", zorder=1)
    for i, level in enumerate(values):
        there = level[~np.isnan(level)]
        if not len(there):
            continue
        ax.errorbar(i, *mean_and_error(there), color="#0072B2", marker="o", capsize=3, zorder=2)
    ax.set_xticks(range(len(values)), [broken(level, 14) for level in found], fontsize=8)
    ax.set_xlim(-0.5, len(values) - 0.5)
    ax.set_title(point, fontsize=10)
    ax.margins(y=0.15)
