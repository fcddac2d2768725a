"""Inpainting with an unconditional denoiser: known pixels stay, and the rest is sampled to fit.

Replacement (Song et al. 2021, "Score-based generative modeling through SDEs", app. I.2): after each
step the known pixels are those of the image, noised to that time. What is sampled then fits a noised
image that the next step replaces by another, so that it is not the conditional distribution.

RePaint (Lugmayr et al. 2022, arXiv 2201.09865, alg. 1): each stretch of steps is gone several times,
with noise put back in between, so that known and unknown come to fit each other. With enough
repeats this comes near to the conditional distribution (tests/core/sampling/test_inpaint.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.condition import UNCONDITIONED, Condition
from core.diffusion.paths import expand
from core.errors import UserError
from core.model import Model
from core.noise import Noise
from core.sampling.editing.partway import times_from
from core.sampling.sample import carry
from core.setting import Setting


def visits(steps: int, resample: int = 1) -> int:
    """How many intervals are gone in all."""
    return steps * resample


@torch.no_grad()
def inpaint(
    model: Model,
    setting: Setting,
    x0: Tensor,
    known: Tensor,
    rng: Noise,
    condition: Condition = UNCONDITIONED,
    resample: int = 10,
    jump: int = 1,
    after_step: Callable[[], None] | None = None,
) -> Tensor:
    """Samples [B, *spec.shape] that are x0 where `known`, to the bit.

    Args:
        x0: [B, *spec.shape]; what is not known of it is not looked at.
        known: bool, broadcast to x0's shape.
        resample: how often each stretch is gone, RePaint's r; 1 is replacement.
        jump: intervals of a stretch, RePaint's j.
        after_step: called after each of the `visits(steps, resample)` intervals.

    Every interval is gone by a run of the sampler of its own, so that one that remembers its steps
    is of its first order here. RePaint's own sampler is "ddpm". Its schedule leaves out the repeats
    of the first stretch, which here has them too.

    Raises:
        UserError: resample or jump below 1, or the setting does not fit the model.
    """
    if resample < 1 or jump < 1:
        raise UserError(f"resample = {resample}, jump = {jump}: both must be at least 1")
    times, path = times_from(model, setting, 1.0), model.path
    shape, count = model.spec.shape, 0
    clean = torch.where(known, x0, torch.zeros_like(x0))
    x = rng.normal(shape, "prior").to(x0)
    for first in range(0, len(times) - 1, jump):
        stretch = times[first : first + jump + 1]
        for again in range(resample):
            if again:
                x = _noised(x, stretch[-1], stretch[0], rng, count, model)
            for i in range(len(stretch) - 1):
                count += 1
                own = rng.of(f"interval {count}")
                x = carry(model, setting, x, stretch[i : i + 2], own, condition)
                noise = rng.normal(shape, "known", count).to(x)
                x = torch.where(known, path.mix(clean, noise, stretch[i + 1]).to(x), x)
                if after_step is not None:
                    after_step()
    return torch.where(known, x0, x)


def _noised(x: Tensor, s: Tensor, t: Tensor, rng: Noise, count: int, model: Model) -> Tensor:
    """x at s with fresh noise up to t > s: N(a x, sigma_t^2 - a^2 sigma_s^2), a = alpha_t / alpha_s
    (Kingma et al. 2021, eq. 2 and 3)."""
    at, to = model.path.at(s), model.path.at(t)
    a = to.alpha / at.alpha
    spread = (to.sigma**2 - (a * at.sigma) ** 2).clamp(min=0).sqrt()
    noise = rng.normal(model.spec.shape, "again", count).to(x)
    return (expand(a, x) * x + expand(spread, x) * noise).to(x.dtype)
