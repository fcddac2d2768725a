"""Time grids: N steps are N intervals, so N + 1 strictly decreasing times from 1 to 0, valid from N = 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.errors import UserError, nearest
from core.paths import Path


def _uniform_time(path: Path, u: Tensor) -> Tensor:
    return 1 - u


def _quadratic_time(path: Path, u: Tensor) -> Tensor:
    """Denser near the data (Song et al. 2021, app. D.2)."""
    return (1 - u).square()


def _lam_bounds(path: Path) -> tuple[Tensor, Tensor]:
    """lam at the two ends; one thousandth inside, where an end is pure noise or clean data and lam is infinite."""
    ends = path.lam(torch.tensor([1.0, 1e-3], dtype=torch.float64))
    inside = path.lam(torch.tensor([1 - 1e-3], dtype=torch.float64))
    return (ends[0] if torch.isfinite(ends[0]) else inside[0]), ends[1]


def _uniform_lam(path: Path, u: Tensor) -> Tensor:
    """Uniform in the log signal-to-noise ratio (Lu et al. 2022)."""
    low, high = _lam_bounds(path)
    return path.time(low + (high - low) * u)


def _karras(path: Path, u: Tensor, rho: float = 7.0) -> Tensor:
    """sigma / alpha to the power 1 / rho in equal steps (Karras et al. 2022, eq. 5)."""
    low, high = _lam_bounds(path)
    top, bottom = torch.exp(-low) ** (1 / rho), torch.exp(-high) ** (1 / rho)
    return path.time(-rho * torch.log(top + (bottom - top) * u))


GRIDS: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "time": _uniform_time,
    "quadratic": _quadratic_time,
    "lam": _uniform_lam,
    "karras": _karras,
}


def make_grid(name: str, path: Path, steps: int, discrete_steps: int | None = None) -> Tensor:
    """[steps + 1] float64 times, 1 first and 0 last.

    "lam" and "karras" place the first `steps` times from noise to t = 1e-3 and end with the jump to 0; "time" and
    "quadratic" divide [0, 1] itself. With `discrete_steps` = T the inner times are moved to multiples of 1 / T.

    Raises:
        UserError: steps < 1, an unknown name, or more steps than a discrete-time model has.
    """
    if steps < 1:
        raise UserError(f"steps = {steps}: a sampler needs at least 1 step")
    if name not in GRIDS:
        raise UserError(f"unknown grid '{name}'{nearest(name, GRIDS)}")
    if discrete_steps is not None and steps > discrete_steps:
        raise UserError(f"steps = {steps}, but this model was trained on {discrete_steps} discrete times")
    intervals = steps if name in ("time", "quadratic") else max(steps - 1, 1)
    u = torch.arange(steps, dtype=torch.float64) / intervals
    times = torch.cat([GRIDS[name](path, u), torch.zeros(1, dtype=torch.float64)])
    times[0] = 1.0
    if discrete_steps is not None:
        index = (times * discrete_steps).round()
        # Rounding may make two times equal: push apart from both ends, keeping the order.
        floor = torch.arange(steps, -1, -1, dtype=torch.float64)
        index = torch.minimum(torch.maximum(index, floor), discrete_steps - steps + floor)
        for i in range(1, steps):
            index[i] = min(index[i], index[i - 1] - 1)
        times = index / discrete_steps
    return times
