"""trajectories.png: how points of the plane go from noise to data, method by method.

Drawn is x_t / (alpha_t + sigma_t), the straight coordinate of core/sampling/solvers/ode.py: a model
whose guess never changes goes straight in it on every path, and its two ends are noise and data.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from core.data import ImageData
from core.errors import UserError
from core.files import check_place
from core.noise import Noise
from core.pictures import PLANE, centres
from core.runs import Load, Run, weights_meant
from core.sampling.sample import sample_images
from core.sampling.solvers import Progress
from core.setting import Setting
from eval.curves.canvas import SMALL, broken, look, pyplot, save
from eval.curves.series import by_protocol, measured, series_label, series_of
from eval.rows import OF_POINTS, Row
from eval.text import counted, one_line

FOLLOWED = 48  # points of a panel
STEPS = 16  # at most, of a panel
COLUMNS = 4  # panels in a line


def ways(run: Run, setting: Setting, count: int, seed: int) -> Tensor:
    """[count, steps + 1, 2] float64: where the first points of a seed are before the first step and
    after each, in straight coordinates."""
    model, indices = run.model, torch.arange(count)
    noise = Noise(seed, indices.to(model.device)).normal(run.spec.shape, "prior")
    states = [noise.double().flatten(1).cpu()]

    def after_step(p: Progress) -> None:
        at = model.path.at(torch.tensor(float(p.s), dtype=torch.float64))
        states.append(p.x.double().flatten(1).cpu() / float(at.alpha + at.sigma))

    sample_images(model, setting, indices, seed, callback=after_step)
    return torch.stack(states, 1)


def detour(paths: Tensor) -> float:
    """Of ways [K, F, 2] their length over the distance of their ends, summed over ways: 1 where all
    are straight."""
    length = paths.diff(dim=1).norm(dim=2).sum()
    return float(length / (paths[:, -1] - paths[:, 0]).norm(dim=1).sum())


def crossing(paths: Tensor) -> float:
    """The share of pairs of ways [K, F, 2] that cross anywhere in the plane, at whatever times."""
    K, F, _ = paths.shape
    start, end = paths[:, :-1].flatten(0, 1), paths[:, 1:].flatten(0, 1)

    def side(a: Tensor, b: Tensor, p: Tensor) -> Tensor:
        """[S, S]: on which side of the line from a_i to b_i the point p_j is."""
        way, gap = (b - a)[:, None], p - a[:, None]
        return (way[..., 0] * gap[..., 1] - way[..., 1] * gap[..., 0]).sign()

    parted = side(start, end, start) * side(start, end, end) < 0  # j's ends on both sides of i
    meet = (parted & parted.T).view(K, F - 1, K, F - 1).any(3).any(1)
    return float(meet.float().sum() - meet.diagonal().sum()) / (K * (K - 1))


def _chosen(rows: list[Row]) -> list[Row]:
    """One row of each run that was measured as points: of its first sampler the one with the most
    steps up to STEPS. Of several training seeds it is the first's."""
    found: dict[tuple, Row] = {}
    firsts = [row.members[0] for group in by_protocol(rows) for row in measured(group)]
    for series in series_of(firsts).values():
        few = [row for row in series if row.steps <= STEPS]
        if few and few[0].metric in OF_POINTS:
            found.setdefault((few[0].method, few[0].run), few[-1])
    return list(found.values())


def plot_paths(rows: list[Row], runs: Path, path: Path, load: Load) -> list[Path]:
    """Draws the ways of the first points of every run, a panel each, over the exact density, with
    how straight they are and how many pairs cross. Returns the files written: none if no points
    were measured, or none of their runs is there.

    Args:
        runs: the folder of the runs; those that are not there are left out, with a warning.
    """
    check_place(path)
    chosen, models, data = [], [], {}
    for row in _chosen(rows):
        try:
            run = load(runs / row.run, weights_meant(row.ema), "cpu", row.steps)
            if run.data is None:
                raise UserError(f"{run.folder} does not say what it was trained on")
            if run.data.name not in data:
                data[run.data.name] = run.data.load("test")
        except UserError as error:
            print(f"warning: {error}; its trajectories are not drawn", file=sys.stderr)
            continue
        chosen.append(row)
        models.append(run)
    if not chosen:
        return []
    lines = math.ceil(len(chosen) / COLUMNS)
    figure, grid = pyplot().subplots(
        lines, min(COLUMNS, len(chosen)), squeeze=False, layout="constrained",
        figsize=(2.9 * min(COLUMNS, len(chosen)), 3.3 * lines + 0.6),
    )  # fmt: skip
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes, row, run in zip(grid.flat, chosen, models):
        _panel(axes, row, run, data[run.data.name], chosen)
    figure.suptitle(one_line(f"{chosen[0].dataset}: from noise (grey) to data"), fontsize=12)
    figure.supxlabel(
        broken(
            f"the ways of {FOLLOWED} points, x / (alpha + sigma); detour: their length over the "
            "distance of their ends, 1 = straight; crossing: pairs whose ways cross in the plane, "
            "at whatever times",
            int(15 * figure.get_figwidth()),
        ),
        **SMALL,
    )
    return save(figure, path, vector=False)


def _panel(axes, row: Row, run: Run, data: ImageData, among: list[Row]) -> None:
    side = 120
    density = data.density.log_density(centres(side)).exp().view(side, side)
    axes.imshow(
        density, extent=(-PLANE, PLANE, -PLANE, PLANE), cmap="YlOrBr", alpha=0.35, vmin=0,
        vmax=2 * float(density.max()), interpolation="nearest",
    )  # fmt: skip
    found, color = ways(run, row.setting, FOLLOWED, row.seed), look(row, among).color
    for way in found:
        axes.plot(*way.T, color=color, linewidth=0.8, alpha=0.75, zorder=2)
    axes.scatter(*found[:, 0].T, s=5, color="#888888", zorder=3)
    axes.scatter(*found[:, -1].T, s=8, color="black", zorder=4)
    axes.set(xlim=(-PLANE, PLANE), ylim=(-PLANE, PLANE), xticks=[], yticks=[], aspect="equal")
    words = f"{series_label(row, among)}, {counted(row.steps, 'step')}"
    axes.set_title(broken(words, 34), fontsize=9)
    axes.set_xlabel(
        f"detour {detour(found):.2f}, crossing {100 * crossing(found):.0f} %", fontsize=9
    )
