"""Jump and renoise: multistep sampling of consistency models (Song et al. 2023, alg. 1)."""

from __future__ import annotations

from torch import Tensor

from core.errors import UserError
from core.noise import Noise
from core.sampling.denoisers import Denoiser
from core.sampling.solvers.common import Callback, draw, intervals, report


def jump_and_renoise(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
    start: float = 1.0,
) -> Tensor:
    """Jumps to the data, then mixes fresh noise in for the next time; nothing is added after the
    last jump. The times are a choice of their own: the grid "renoise" stops at t = 1/4 where there
    are many steps, and `python -m scripts.times` searches for those of a model.

    start: the time that the first jump is made from; the grid is scaled to begin there. A generator
    that was made of a denoiser is given pure noise, sigma_start times `noise`, but told a time
    below 1, where the denoiser it began as does not answer all noise alike (Zhou et al. 2024,
    sigma_init).

    Raises:
        UserError: start is not in (0, 1].
    """
    if not 0 < start <= 1:
        raise UserError(f"sampler consistency: start={start:g} must be above 0 and at most 1")
    x = noise
    if start < 1:
        grid = start * grid
        x = float(denoiser.path.sigma(grid[0])) * noise
    for step in intervals(denoiser.path, grid):
        x0, _ = denoiser(x, step.a.time)
        x = step.b.alpha * x0
        if step.b.sigma > 0:
            x = x + step.b.sigma * draw(rng, x, step.index)
        report(callback, step, x, x0)
    return x
