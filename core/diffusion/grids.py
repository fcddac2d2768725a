"""Time grids: N steps are N intervals, so N + 1 strictly decreasing times from 1 to 0, valid from N
= 1.

The spacings of diffusers' schedulers (SPACINGS) are grids too, for comparing with what is
published. The leading ones start below t = 1, with the same pure noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from core.diffusion.paths import Path
from core.errors import UserError, nearest


def _uniform_time(path: Path, u: Tensor) -> Tensor:
    return 1 - u


def _quadratic_time(path: Path, u: Tensor) -> Tensor:
    """Denser near the data (Song et al. 2021, app. D.2)."""
    return (1 - u).square()


def _lam_bounds(path: Path) -> tuple[Tensor, Tensor]:
    """lam at the two ends; one thousandth inside, where an end is pure noise or clean data and lam
    is infinite."""
    ends = path.lam(torch.tensor([1.0, 1e-3], dtype=torch.float64))
    inside = path.lam(torch.tensor([1 - 1e-3], dtype=torch.float64))
    return (ends[0] if torch.isfinite(ends[0]) else inside[0]), ends[1]


def _uniform_lam(path: Path, u: Tensor) -> Tensor:
    """Uniform in the log signal-to-noise ratio (Lu et al. 2022)."""
    low, high = _lam_bounds(path)
    return path.time(low + (high - low) * u)


def _spaced(path: Path, u: Tensor, top: Tensor, bottom: Tensor, rho: float = 7.0) -> Tensor:
    top, bottom = top ** (1 / rho), bottom ** (1 / rho)
    return path.time(-rho * torch.log(top + (bottom - top) * u))


def _karras(path: Path, u: Tensor) -> Tensor:
    """sigma / alpha to the power 1 / rho in equal steps, rho = 7 (Karras et al. 2022, eq. 5), over
    the path's own range."""
    low, high = _lam_bounds(path)
    return _spaced(path, u, torch.exp(-low), torch.exp(-high))


def _edm(path: Path, u: Tensor) -> Tensor:
    """The same from sigma / alpha = 80 to 0.002, as in that paper's table 1 and in consistency
    models. A cosine path goes on to 20,000, where everything is noise, and its own range would
    spend most of a few steps there; a path that ends below 80 starts at its end."""
    low, _ = _lam_bounds(path)
    return _spaced(path, u, torch.exp(-low).clamp(max=80.0), u.new_tensor(0.002))


def _renoise(path: Path, u: Tensor) -> Tensor:
    """Equal steps from 1 down to 1/4, or to 1/N where that is more, and then to the data: for
    consistency models, whose every fresh noise at a small time adds an error of the network's own.
    Up to 4 steps it is "time"."""
    return 1 - (1 - max(1 / len(u), 0.25)) * u


GRIDS: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "time": _uniform_time,
    "quadratic": _quadratic_time,
    "lam": _uniform_lam,
    "karras": _karras,
    "edm": _edm,
    "renoise": _renoise,
}
GIVEN = "at:"  # a grid of its own times


# name: (spacing in diffusers, steps_offset, whether as in its multistep schedulers)
SPACINGS: dict[str, tuple[str, int, bool]] = {
    "trailing": ("trailing", 0, False),
    "leading": ("leading", 0, False),
    "leading-offset": ("leading", 1, False),
    "linspace": ("linspace", 0, False),
    "leading-multistep": ("leading", 0, True),
    "linspace-multistep": ("linspace", 0, True),
}
GRID_NAMES = (*GRIDS, *SPACINGS)


def diffusers_times(
    spacing: str,
    steps: int,
    T: int = 1000,
    offset: int = 0,
    multistep: bool = False,
    to_first_entry: bool = False,
) -> Tensor:
    """[steps + 1] float64 times at which a scheduler of diffusers evaluates the network, with
    timestep k at (k + 1) / T, and the time it ends at.

    Args:
        spacing: trailing, leading or linspace (Lin et al. 2024, table 2); the multistep schedulers
            (DPM-Solver, UniPC) divide into one interval more for the last two, and never visit the
            smallest timestep.
        offset: steps_offset, of leading only.
        to_first_entry: end at entry 0, t = 1 / T, as with set_alpha_to_one=False; otherwise at
            clean data.

    DDPMScheduler, DPMSolverMultistepScheduler and UniPCMultistepScheduler step from each time to
    the next. DDIMScheduler steps T // steps timesteps down whatever the next one is: the same where
    T is a multiple of steps, for leading and trailing; for linspace it lands elsewhere than it
    looks next, which a grid does not imitate.

    Raises:
        UserError: more steps than timesteps, an offset that leads past the last, or timesteps that
            coincide.
    """
    if steps > T:
        raise UserError(f"steps = {steps}, but this model was trained on {T} discrete times")
    down = torch.arange(steps, 0, -1, dtype=torch.float64)  # N, ..., 1
    if spacing == "trailing":
        interval = T - (
            T - T / steps
        )  # as numpy's arange rounds it, which decides ties: at 48 steps of 1000, for example
        k = (T - torch.arange(steps, dtype=torch.float64) * interval).round() - 1
    elif spacing == "leading":
        k = down * (T // (steps + 1)) + offset if multistep else (down - 1) * (T // steps) + offset
    else:
        k = (
            down * ((T - 1) / steps) if multistep else (down - 1) * ((T - 1) / max(steps - 1, 1))
        ).round()
    if k[0] > T - 1:
        raise UserError(
            f"steps = {steps}: spacing leading with offset {offset} leads past the last of {T}; take fewer"
        )
    if bool((k.diff() >= 0).any()):
        raise UserError(
            f"steps = {steps}: spacing {spacing} of {T} timesteps gives one of them twice; take fewer steps"
        )
    return torch.cat(
        [(k + 1) / T, torch.full((1,), 1 / T if to_first_entry else 0.0, dtype=torch.float64)]
    )


def given_grid(times: Sequence[float]) -> str:
    """The name of the grid from 1 over these inner times to 0: "at:0.75,0.4"."""
    return GIVEN + ",".join(f"{t:.6g}" for t in times)


def _given_times(name: str, steps: int, discrete_steps: int | None) -> Tensor:
    words = name.removeprefix(GIVEN)
    try:
        inner = [float(word) for word in words.split(",")] if words else []
    except ValueError as error:
        raise UserError(f"grid '{name}': give times with commas, such as at:0.75,0.4") from error
    times = torch.tensor([1.0, *inner, 0.0], dtype=torch.float64)
    if len(inner) != steps - 1 or not bool((times.diff() < 0).all()):
        raise UserError(
            f"grid '{name}' for {steps} steps: give {steps - 1} decreasing times between 1 and 0"
        )
    at = times * (discrete_steps or 1)
    if discrete_steps and not torch.allclose(at, at.round(), rtol=0, atol=1e-6):
        raise UserError(
            f"grid '{name}': this model was trained at multiples of 1 / {discrete_steps} alone"
        )
    return times


def make_grid(name: str, path: Path, steps: int, discrete_steps: int | None = None) -> Tensor:
    """[steps + 1] float64 times, 1 first (SPACINGS: leading ones, and linspace in one step, begin
    below 1) and 0 last. The grid "at:0.75,0.4" is 1, 0.75, 0.4, 0.

    "lam", "karras" and "edm" place the first `steps` times from noise to t = 1e-3 ("edm": to sigma
    / alpha = 0.002) and end with the jump to 0; "time" and "quadratic" divide [0, 1] itself. With
    `discrete_steps` = T the inner times are moved to multiples of 1 / T. SPACINGS are for tables of
    T entries; on a model of continuous time, T = 1000.

    Raises:
        UserError: steps < 1, an unknown name, or more steps than a discrete-time model has.
    """
    if steps < 1:
        raise UserError(f"steps = {steps}: a sampler needs at least 1 step")
    if name.startswith(GIVEN):
        return _given_times(name, steps, discrete_steps)
    if name not in GRID_NAMES:
        raise UserError(f"unknown grid '{name}'{nearest(name, GRID_NAMES)}")
    if name in SPACINGS:
        spacing, offset, multistep = SPACINGS[name]
        return diffusers_times(spacing, steps, discrete_steps or 1000, offset, multistep)
    if discrete_steps is not None and steps > discrete_steps:
        raise UserError(
            f"steps = {steps}, but this model was trained on {discrete_steps} discrete times"
        )
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
