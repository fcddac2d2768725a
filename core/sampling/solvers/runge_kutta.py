"""Midpoint, the classical Runge-Kutta method and adaptive Dormand-Prince on the probability flow,
in the straight coordinates of core/sampling/solvers/ode.py.

Between the times of the grid they ask for the guess at the time whose w = sigma / (alpha + sigma)
lies between, which a network of discrete times was never trained at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from core.diffusion.paths import Path
from core.errors import UserError
from core.noise import Noise
from core.sampling.denoisers import Denoiser
from core.sampling.solvers.common import Callback, Point, intervals, report, straight

# Where a slope at clean data is asked for: on most paths and predictions there is none at w = 0.
NEAREST = 1e-4


class _Slope:
    """dy/dw = eps - x0 in the straight coordinates y = x / (alpha + sigma)."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.x0: Tensor | None = None  # the last guess

    def __call__(self, y: Tensor, point: Point) -> Tensor:
        scale, _ = straight(point)
        self.x0, eps = self.denoiser(scale * y, point.time)
        return eps - self.x0


def _points(path: Path, ways: Iterable[float]) -> list[Point]:
    """The times of these w, kept between NEAREST and the path's pure noise."""
    most = path.at(torch.ones((), dtype=torch.float64))
    last = float(most.sigma / (most.alpha + most.sigma))
    w = torch.tensor([min(max(way, NEAREST), last) for way in ways], dtype=torch.float64)
    lam = torch.log1p(-w) - w.log()
    time = path.time(lam).clamp(0.0, 1.0)
    c = path.at(time)
    return [
        Point(time[i], *(float(v[i]) for v in (time, c.alpha, c.sigma, lam))) for i in range(len(w))
    ]


def nearest_to_clean(path: Path) -> Point:
    """Where a slope at clean data is taken."""
    return _points(path, [0.0])[0]


# A step: slope function, y at the start, slope there, h, and the points half-way and at the end
Step = Callable[[_Slope, Tensor, Tensor, float, Point, Point], Tensor]


def _midpoint(f: _Slope, y: Tensor, slope: Tensor, h: float, half: Point, end: Point) -> Tensor:
    return y + h * f(y + 0.5 * h * slope, half)


def _classical(f: _Slope, y: Tensor, slope: Tensor, h: float, half: Point, end: Point) -> Tensor:
    second = f(y + 0.5 * h * slope, half)
    third = f(y + 0.5 * h * second, half)
    last = f(y + h * third, end)
    return y + h / 6 * (slope + 2 * second + 2 * third + last)


def _solve(
    step: Step, denoiser: Denoiser, noise: Tensor, grid: Tensor, callback: Callback | None
) -> Tensor:
    x, f, path = noise, _Slope(denoiser), denoiser.path
    steps = list(intervals(path, grid))
    ways = [(straight(i.a)[1], straight(i.b)[1]) for i in steps]
    halves, nearest = _points(path, [(a + b) / 2 for a, b in ways]), nearest_to_clean(path)
    for interval, (a, b), half in zip(steps, ways, halves, strict=True):
        y = x / straight(interval.a)[0]
        slope = f(y, interval.a)
        x0 = f.x0
        end = interval.b if interval.b.sigma > 0 else nearest
        x = straight(interval.b)[0] * step(f, y, slope, b - a, half, end)
        report(callback, interval, x, x0)
    return x


def midpoint(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Order 2, two evaluations a step, none of them at clean data."""
    return _solve(_midpoint, denoiser, noise, grid, callback)


def rk4(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Order 4, four evaluations a step. A slope that it needs at clean data is taken at w = 1e-4,
    where every prediction has one."""
    return _solve(_classical, denoiser, noise, grid, callback)


def rk45(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
    tolerance: float = 1e-4,
) -> Tensor:
    """Dormand and Prince's adaptive pair of orders 5 and 4, by torchdiffeq's dopri5 (Chen et al.
    2018), as rectified flows are usually measured (Liu et al. 2023, tolerance 1e-5).

    How often it evaluates follows from the tolerance, relative and absolute: it is counted, like
    all evaluations, and what is planned before sampling is an estimate. The grid is where the
    trajectory is reported, and is reached exactly at its end alone. The steps are shared by a
    batch, by its worst sample, so that samples depend on the batch within the tolerance: the
    exception among solvers.

    Raises:
        UserError: torchdiffeq is missing, or the tolerance is none.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise UserError("rk45 needs the library torchdiffeq: pip install torchdiffeq") from error
    if not 1e-12 <= tolerance < 1:
        raise UserError(f"tolerance = {tolerance:g}: from 1e-12 to below 1")
    steps, f = list(intervals(denoiser.path, grid)), _Slope(denoiser)
    points = [steps[0].a, *(step.b for step in steps)]
    ways = torch.tensor([straight(point)[1] for point in points], dtype=torch.float64)
    guesses: list[tuple[float, Tensor]] = []

    def slope(w: Tensor, y: Tensor) -> Tensor:
        at_start = float(w) == float(ways[0])
        value = f(y, points[0] if at_start else _points(denoiser.path, [float(w)])[0])
        if callback is not None:
            guesses.append((float(w), f.x0))
        return value

    def worst(y: Tensor) -> Tensor:
        return y.flatten(1).square().mean(1).sqrt().max()

    start = noise / straight(points[0])[0]
    ys = odeint(
        slope,
        start,
        ways.to(noise.device),
        rtol=tolerance,
        atol=tolerance,
        method="dopri5",
        options={"norm": worst, "dtype": torch.float64},
    )
    for step, y in zip(steps, ys[1:], strict=True):
        x = (straight(step.b)[0] * y).to(noise.dtype)
        if callback is not None:  # the guess nearest to where the step began
            w = straight(step.a)[1]
            report(callback, step, x, min(guesses, key=lambda known: abs(known[0] - w))[1])
    return x
