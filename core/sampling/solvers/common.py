"""What all samplers share: the contract, and the grid's coefficients as plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from core.diffusion.paths import Path
from core.noise import Noise
from core.sampling.denoisers import Denoiser


class Progress(NamedTuple):
    """Given to a callback after each step: step `index` of `steps` (from 1) went from t to s and
    arrived at x.

    x0 is the guess of the data that the step was based on; keep it for a film of the sampling.
    """

    index: int
    steps: int
    t: float
    s: float
    x: Tensor
    x0: Tensor


Callback = Callable[[Progress], None]


class SamplerFunction(Protocol):
    """noise [B, C, H, W] at time grid[0] -> x [B, C, H, W] at time grid[-1]; no state is kept
    between calls."""

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        grid: Tensor,
        rng: Noise | None = None,
        callback: Callback | None = None,
    ) -> Tensor: ...


class Point(NamedTuple):
    """One time of a grid: t as a tensor for the network, the rest as Python floats in double
    precision."""

    time: Tensor
    t: float
    alpha: float
    sigma: float
    lam: float


class Interval(NamedTuple):
    """From `a` (noisier) to `b`; `index` counts from 1 to `steps`."""

    index: int
    steps: int
    a: Point
    b: Point


def intervals(path: Path, grid: Tensor) -> Iterator[Interval]:
    """The intervals of a decreasing float64 grid [N + 1]."""
    grid = grid.double().cpu()
    c, lam = path.at(grid), path.lam(grid)
    points = [
        Point(grid[i], *(float(v[i]) for v in (grid, c.alpha, c.sigma, lam)))
        for i in range(len(grid))
    ]
    for i in range(len(points) - 1):
        yield Interval(i + 1, len(points) - 1, points[i], points[i + 1])


def straight(point: Point) -> tuple[float, float]:
    """scale and w of the straight coordinates x / scale (core/sampling/solvers/ode.py)."""
    scale = point.alpha + point.sigma
    return scale, point.sigma / scale


def report(callback: Callback | None, interval: Interval, x: Tensor, x0: Tensor) -> None:
    if callback is not None:
        callback(Progress(interval.index, interval.steps, interval.a.t, interval.b.t, x, x0))


def draw(rng: Noise | None, x: Tensor, step: int) -> Tensor:
    """The noise of one step of a stochastic sampler, addressed by sample and step."""
    if rng is None:
        raise ValueError("this sampler is stochastic: give it rng, the Noise of these samples")
    return rng.normal(tuple(x.shape[1:]), "sampler", step, dtype=x.dtype).to(x.device)
