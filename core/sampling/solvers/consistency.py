"""Jump and renoise: multistep sampling of consistency models (Song et al. 2023, alg. 1)."""

from __future__ import annotations

from torch import Tensor

from core.noise import Noise
from core.sampling.denoisers import Denoiser
from core.sampling.solvers.common import Callback, draw, intervals, report


def jump_and_renoise(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Jumps to the data, then mixes fresh noise in for the next time; nothing is added after the
    last jump. The times are a choice of their own: the grid "renoise" stops at t = 1/4 where there
    are many steps, and `python -m scripts.times` searches for those of a model."""
    x = noise
    for step in intervals(denoiser.path, grid):
        x0, _ = denoiser(x, step.a.time)
        x = step.b.alpha * x0
        if step.b.sigma > 0:
            x = x + step.b.sigma * draw(rng, x, step.index)
        report(callback, step, x, x0)
    return x
