"""Flow maps: from each time of the grid straight to the next, for networks that learned the way."""

from __future__ import annotations

from torch import Tensor

from core.noise import Noise
from core.sampling.denoisers import Denoiser
from core.sampling.solvers.common import Callback, intervals, report, straight


def flow_map(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """One evaluation per step, deterministic. For networks without a second time it is DDIM."""
    x = noise
    for step in intervals(denoiser.path, grid):
        end = denoiser.map(x, step.a.time, step.b.time)
        (scale_a, w_a), (scale_b, w_b) = straight(step.a), straight(step.b)
        slope = (end / scale_b - x / scale_a) / (w_b - w_a)
        guess = x / scale_a - w_a * slope  # of x0, on the straight line through both ends
        x = end
        report(callback, step, x, guess)
    return x
