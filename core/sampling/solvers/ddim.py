"""DDIM (Song et al. 2021) and ancestral DDPM sampling (Ho et al. 2020), for any path and any
grid."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from core.errors import UserError
from core.noise import Noise
from core.sampling.denoisers import Denoiser
from core.sampling.solvers.common import Callback, draw, intervals, report


def ddim(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
    variance: str = "small",
) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 V) eps + eta sqrt(V) z (Song et al. 2021, eq. 12).

    V is the posterior variance of x_s given x_t and x0, so eta = 1 is ancestral sampling: with
    variance "small" exactly DDPM's posterior (Ho et al. 2020, eq. 7); with "large" its other
    choice, beta_t, for the noise alone. Order 1.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta = {eta:g}: from 0, which adds no noise, to 1, which is ancestral")
    x = noise
    for step in intervals(denoiser.path, grid):
        a, b = step.a, step.b
        x0, eps = denoiser(x, a.time)
        # sigma_{t|s}^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, and the posterior's variance
        # (Kingma et al. 2021, eq. 25)
        between = posterior = 0.0
        if eta > 0:
            between = a.sigma**2 - (a.alpha / b.alpha * b.sigma) ** 2
            posterior = between * (b.sigma / a.sigma) ** 2
        x = b.alpha * x0 + math.sqrt(max(b.sigma**2 - eta**2 * posterior, 0.0)) * eps
        if eta > 0 and b.sigma > 0:
            x = x + eta * math.sqrt(between if variance == "large" else posterior) * draw(
                rng, x, step.index
            )
        report(callback, step, x, x0)
    return x


ancestral = partial(ddim, eta=1.0)
ancestral_large = partial(
    ddim, eta=1.0, variance="large"
)  # "fixed_large" in diffusers, as CIFAR-10's checkpoint was published
