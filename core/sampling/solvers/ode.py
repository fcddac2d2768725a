"""Euler and Heun on the probability-flow ODE.

Every path is a rescaling of the straight one: with x' = x / (alpha + sigma) and w = sigma / (alpha
+ sigma) the ODE reads dx'/dw = eps - x0, which is finite at both ends of every path, where dx/dt on
the VP paths is not. On the rectified path these are literally Euler and Heun in t; on any path
Euler is DDIM (Song et al. 2021, sec. 4.3), and Heun is the trapezoid rule of Karras et al. 2022
(alg. 1) in straight coordinates instead of their sigma, which has no value at pure noise.
"""

from __future__ import annotations

from torch import Tensor

from core.noise import Noise
from core.sampling.denoisers import Denoiser
from core.sampling.solvers.common import Callback, intervals, report, straight
from core.sampling.solvers.ddim import ddim


def euler(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Order 1, one evaluation a step; the same step as DDIM with eta = 0."""
    return ddim(denoiser, noise, grid, rng, callback)


def heun(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Order 2, two evaluations a step; a step that ends on clean data is an Euler step, as in
    Karras et al. 2022."""
    x = noise
    for step in intervals(denoiser.path, grid):
        (scale_a, w_a), (scale_b, w_b) = straight(step.a), straight(step.b)
        x0, eps = denoiser(x, step.a.time)
        slope = eps - x0
        end = scale_b * (x / scale_a + (w_b - w_a) * slope)
        if step.b.sigma > 0:
            x0_b, eps_b = denoiser(end, step.b.time)
            end = scale_b * (x / scale_a + (w_b - w_a) * 0.5 * (slope + eps_b - x0_b))
        x = end
        report(callback, step, x, x0)
    return x
