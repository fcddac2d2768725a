"""What else tells an image that does not belong: the norm of the score and the error of eps over
noise levels, and how an image comes back from half noise. All are larger for stranger images, or
meant to be."""

from __future__ import annotations

import torch
from torch import Tensor

from core.condition import UNCONDITIONED, Condition
from core.model import Model
from core.noise import Noise
from core.sampling.denoisers import denoiser_for
from core.sampling.sample import sampler_of
from core.setting import Setting


def _known(model: Model, times: Tensor) -> Tensor:
    """The times, moved to those that the model was trained at."""
    T = model.spec.discrete_steps
    return times if T is None else (times * T).round() / T


def level_times(model: Model, levels: int) -> Tensor:
    """[levels] float64: times at which w = sigma / (alpha + sigma) is in equal steps strictly
    between 0 and 1, so that levels are the same noise on every path; one level is half noise."""
    w = torch.arange(1, levels + 1, dtype=torch.float64) / (levels + 1)
    return _known(model, model.path.from_straight(w))


@torch.no_grad()
def score_norms(
    model: Model, x0: Tensor, times: Tensor, condition: Condition = UNCONDITIONED
) -> Tensor:
    """[B, levels]: sigma_t |score(alpha_t x0, t)| / sqrt D, the score of the image itself, without
    noise, as it is taken for each noise level (Mahmood et al. 2021)."""
    found = []
    for t in times:
        c = model.path.at(t)
        score = model.score(float(c.alpha) * x0, t.to(x0.device), condition)
        found.append(float(c.sigma) * score.double().flatten(1).square().mean(1).sqrt())
    return torch.stack(found, 1)


@torch.no_grad()
def eps_errors(
    model: Model, x0: Tensor, times: Tensor, rng: Noise, condition: Condition = UNCONDITIONED
) -> Tensor:
    """[B, levels]: the mean square of eps - eps(x_t, t) at each noise level, one draw each."""
    found = []
    for i, t in enumerate(times):
        eps = rng.normal(tuple(x0.shape[1:]), "eps", i, x0.dtype)
        x = model.path.mix(x0, eps, t.to(x0.device))
        error = model.eps(x, t.to(x0.device), condition) - eps
        found.append(error.double().flatten(1).square().mean(1))
    return torch.stack(found, 1)


def unusual(values: Tensor, usual: Tensor) -> Tensor:
    """[B]: how far values [B, levels] are from the usual ones [N, levels], as the Mahalanobis
    distance of their logarithms: the density of a Gaussian that is fitted to the training images, the
    simplest of the auxiliary models of Mahmood et al. 2021."""
    known, given = usual.double().log(), values.double().log()
    mean, spread = known.mean(0), torch.cov(known.T)
    ridge = 1e-6 * spread.diagonal().mean() * torch.eye(len(spread), dtype=torch.float64)
    gap = given - mean
    return (gap * torch.linalg.solve(spread + ridge, gap.T).T).sum(1).sqrt()


@torch.no_grad()
def from_half_noise(
    model: Model,
    x0: Tensor,
    rng: Noise,
    setting: Setting,
    condition: Condition = UNCONDITIONED,
) -> Tensor:
    """x0 as it comes back [B, ...]: noised to where there is as much noise as image, and sampled
    from there in steps that are equal in time (Wyatt et al. 2022; Graham et al. 2023)."""
    start = float(level_times(model, 1))
    grid = _known(model, torch.linspace(start, 0.0, setting.steps + 1, dtype=torch.float64))
    eps = rng.normal(tuple(x0.shape[1:]), "half", dtype=x0.dtype)
    x = model.path.mix(x0, eps, grid[0].to(x0.device))
    denoiser = denoiser_for(model, condition, setting.guidance_scale, setting.threshold)
    return sampler_of(setting).run(denoiser, x, grid, rng, None, **setting.options)
