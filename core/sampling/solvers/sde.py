"""Euler-Maruyama on the reverse SDE (Song et al. 2021, "Score-based generative modeling through
SDEs", eq. 6)."""

from __future__ import annotations

import math

from torch import Tensor

from core.noise import Noise
from core.sampling.denoisers import Denoiser
from core.sampling.solvers.common import Callback, draw, intervals, report, straight


def euler_maruyama(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Weak order 1, one evaluation a step.

    In the straight coordinates of core.sampling.solvers.ode, with w = sigma / (alpha + sigma), the
    forward SDE of any path is dx' = -x' / (1 - w) dw + sqrt(2 w / (1 - w)) dW, and its reversal dx'
    = [eps - x0 + eps / (1 - w)] dw + the same noise.

    Two ends need care. The first step starts from pure noise, where the drift is singular (alpha =
    0) or nearly so and x carries no information on x0: the exact transition, fresh noise around the
    guess, is taken instead. A step that ends on clean data returns the guess x0, the usual final
    denoising, since any noise there would stay in the picture.
    """
    x = noise
    for step in intervals(denoiser.path, grid):
        a, b = step.a, step.b
        x0, eps = denoiser(x, a.time)
        if b.sigma == 0:
            x = b.alpha * x0
        elif a.t == 1:
            x = b.alpha * x0 + b.sigma * draw(rng, x, step.index)
        else:
            (scale_a, w_a), (scale_b, w_b) = straight(a), straight(b)
            drift = eps - x0 + eps / (1 - w_a)
            spread = math.sqrt(2 * w_a / (1 - w_a) * (w_a - w_b))
            x = scale_b * (x / scale_a + (w_b - w_a) * drift + spread * draw(rng, x, step.index))
        report(callback, step, x, x0)
    return x
