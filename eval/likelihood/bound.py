"""The variational bound of a DDPM on minus log p of stored samples (Ho et al. 2020, eq. 5):

    L_T + sum over k = 2..T of L_{k-1} + L_0,

with T steps at t = k / T on any path. L_T is the KL divergence of q(x_T | x0) from N(0, I); L_{k-1}
that of q(x_{k-1} | x_k, x0) from p(x_{k-1} | x_k), both Gaussian; L_0 is minus the log probability
of the stored values under their discretised Gaussian decoder (eq. 13), or its density for samples
that are continuous.

Deviation: the sum over k is estimated from `times` of its terms, without bias, so that 1000 steps do
not cost 1000 evaluations; times = T - 1 takes every term.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from core.condition import UNCONDITIONED, Condition
from core.config import Strict
from core.diffusion.paths import Coefficients, Path, expand
from core.errors import UserError
from core.model import Model
from core.noise import Noise


class BoundConfig(Strict):
    """Which DDPM is bounded, and how its sum is estimated."""

    steps: int = Field(default=1000, ge=2, le=1_000_000)
    """T, the steps of the chain"""
    times: int = Field(default=50, ge=1, le=1_000_000)
    """evaluations of an image for the terms between the prior and the decoder"""
    variance: Literal["small", "large"] = "small"
    """of p: the posterior's, at the decoder that of the step before it, as in the code of Ho et al.
    2020, since its own is 0; or that of q(x_k | x_{k-1}) (their sec. 3.2)"""

    @model_validator(mode="after")
    def _times(self) -> BoundConfig:
        if self.times > self.steps - 1:
            raise ValueError(f"times={self.times}: a chain of {self.steps} steps has "
                             f"{self.steps - 1} terms between prior and decoder")  # fmt: skip
        return self


class Bound(NamedTuple):
    """The three parts for each sample, [B] float64 in nats: L_T, the sum of L_1 to L_{T-1}, L_0."""

    prior: Tensor
    middle: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        return self.prior + self.middle + self.decoder


class _Step(NamedTuple):
    """Of a step from t to s < t: the coefficient of x0 in the posterior's mean, the posterior's
    variance and that of q(x_t | x_s)."""

    of_x0: Tensor
    posterior: Tensor
    forward: Tensor


def _step(s: Coefficients, t: Coefficients) -> _Step:
    """Ho et al. 2020, eq. 6 and 7, between any two times."""
    ratio = t.alpha / s.alpha
    forward = t.sigma.square() - ratio.square() * s.sigma.square()
    return _Step(
        s.alpha * forward / t.sigma.square(),
        forward * s.sigma.square() / t.sigma.square(),
        forward,
    )


def _summed(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def log_cell(x0: Tensor, mean: Tensor, std: Tensor, spacing: float) -> Tensor:
    """log P of stored values, as the network sees them in [-1, 1], under N(mean, std^2) in cells of
    `spacing` around each; the outermost cells reach to infinity (Ho et al. 2020, eq. 13). All
    digits in both tails."""
    low, high = (x0 - 0.5 * spacing - mean) / std, (x0 + 0.5 * spacing - mean) / std
    low = low.masked_fill(x0 < -1 + 0.5 * spacing, -math.inf)
    high = high.masked_fill(x0 > 1 - 0.5 * spacing, math.inf)
    mirrored = low > 0  # there both values of the distribution function are 1 to rounding
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    top, bottom = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return top + torch.log1p(-torch.exp(bottom - top))


def chosen_steps(path: Path, T: int, times: int, u: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the terms k = 2..T are evaluated, int64 [B, times], and their weights in the sum
    over all k, by u [B, times] in (0, 1).

    Drawn half evenly in k and half evenly in the log signal-to-noise ratio, where terms are of one
    size, one of each of `times` equal shares of probability; times = T - 1 takes every k once.
    """
    if times == T - 1:
        every = torch.arange(2, T + 1, device=u.device).expand(len(u), -1)
        return every, torch.ones_like(u)
    lam = path.lam(torch.arange(1, T + 1, dtype=torch.float64) / T)
    fall = -lam.diff()
    fall = fall.clamp(max=fall[torch.isfinite(fall)].max())  # pure noise is infinitely far
    p = (0.5 * fall / fall.sum() + 0.5 / (T - 1)).to(u.device)
    shares = (torch.arange(times, device=u.device) + u) / times
    i = torch.searchsorted(p.cumsum(0), shares).clamp(max=T - 2)
    return i + 2, 1 / (times * p[i])


def variational_bound(
    model: Model,
    stored: Tensor,
    config: BoundConfig,
    rng: Noise,
    condition: Condition = UNCONDITIONED,
) -> Bound:
    """Of stored samples [B, ...]. The network is asked times + 1 times for each, without autocast.

    Raises:
        UserError: a model without a mean of the data, of other discrete times, or one that is not
            finite.
    """
    model.check_denoises()
    T, known = config.steps, model.spec.discrete_steps
    if known is not None and known % T:
        raise UserError(
            f"bound.steps={T}: this model knows {known} times, of which {T} are no part"
        )
    path, spacing = model.path, model.codec.spacing
    x0 = model.codec.encode(stored.to(rng.indices.device)).double()
    shape, D = tuple(x0.shape[1:]), x0[0].numel()

    def guessed(k: Tensor, draw: int) -> Tensor:
        t = k.double() / T
        x = path.mix(x0, rng.normal(shape, "bound", draw, torch.float64), t)
        with torch.no_grad():
            F = model.output(x, t, condition, autocast=False)
        return model.parameterisation.x0(F, x, t, path)

    end = path.at(torch.ones((), dtype=torch.float64, device=x0.device))
    square = (end.alpha * x0).square() + end.sigma.square() - 1 - 2 * end.sigma.log()
    chosen, weight = chosen_steps(path, T, config.times, rng.uniform("bound", count=config.times))
    middle = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for i in range(config.times):
        k = chosen[:, i]
        gap = _summed((x0 - guessed(k, i + 1)).square())
        middle += weight[:, i] * _divergence(path, k, T, gap, D, config.variance)
    first = torch.ones(len(x0), dtype=torch.int64, device=x0.device)
    one, two = (path.at((k * first / T).double()) for k in (1, 2))
    spread = one.sigma.square() if config.variance == "large" else _step(one, two).posterior
    mean, std = guessed(first, 0), expand(spread.sqrt(), x0)
    if spacing is None:
        log_p = -0.5 * ((x0 - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    else:
        log_p = log_cell(x0, mean, std, spacing)
    bound = Bound(_summed(0.5 * square), middle, -_summed(log_p))
    if not torch.isfinite(bound.total).all():
        raise UserError("NaN or infinite bounds: the weights have diverged")
    return bound


def _divergence(
    path: Path, k: Tensor, T: int, gap: Tensor, dimensions: int, variance: str
) -> Tensor:
    """KL(q(x_{k-1} | x_k, x0), p(x_{k-1} | x_k)) [B], of the squared error `gap` of x0."""
    step = _step(path.at((k - 1).double() / T), path.at(k.double() / T))
    own = step.posterior if variance == "small" else step.forward
    ratio = step.posterior / own
    wider = 0.5 * dimensions * (ratio - 1 - ratio.log())
    return wider + 0.5 * step.of_x0.square() / own * gap
