"""The exact denoiser of a mixture of isotropic Gaussians, so that samplers and students can be
tested without training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.diffusion.parameterisations import from_denoised
from core.diffusion.paths import Path, expand
from core.model import Model, ModelSpec


class MixtureDenoiser(nn.Module):
    """E[x0 | x_t] in closed form for x0 ~ sum_k weights_k N(means_k, stds_k^2 I).

    With r_k the posterior probability of component k, E[x0 | x] = sum_k r_k (mu_k + g_k (x - alpha
    mu_k)) and g_k = alpha s_k^2 / (alpha^2 s_k^2 + sigma^2): Tweedie's formula applied to each
    component.

    As a network it returns v, so it stands in wherever a trained network would.

    Args:
        path: the path its inputs lie on.
        means: [K, ...] component means, of the shape of one sample.
        stds, weights: [K] standard deviations and probabilities.
    """

    def __init__(self, path: Path, means: Tensor, stds: Tensor, weights: Tensor):
        super().__init__()
        self.path = path
        self.register_buffer("means", means.double())
        self.register_buffer("stds", stds.double())
        self.register_buffer("weights", (weights / weights.sum()).double())

    def x0(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, ...] (float64), t [] or [B] -> E[x0 | x_t] [B, ...]."""
        c = self.path.at(t.to(x.device))
        alpha, sigma = (v.expand(len(x))[:, None] for v in (c.alpha, c.sigma))  # [B, 1]
        variance = alpha**2 * self.stds**2 + sigma**2  # [B, K]
        flat, means = x.flatten(1), self.means.flatten(1)
        gaps = flat[:, None] - alpha[..., None] * means  # [B, K, D]
        log = (
            self.weights.log()
            - 0.5 * gaps.square().sum(-1) / variance
            - 0.5 * flat.shape[1] * variance.log()
        )
        guess = means + (alpha * self.stds**2 / variance)[..., None] * gaps  # [B, K, D]
        return (log.softmax(dim=1)[..., None] * guess).sum(1).view_as(x)

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
        y = x.double()
        x0 = self.x0(y, t)
        c = self.path.at(t)
        eps = (y - expand(c.alpha, y) * x0) / expand(c.sigma, y)
        return from_denoised("v", x0, eps, t, self.path).to(x.dtype)

    def sample(self, generator: torch.Generator, count: int) -> Tensor:
        """[count, ...] exact samples of the data."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, *self.means.shape[1:], dtype=torch.float64, generator=generator)
        return self.means[k] + self.stds[k].view(-1, *[1] * (z.ndim - 1)) * z


def gaussian_flow(path: Path, x: Tensor, t: Tensor, s: Tensor, mean: Tensor, std: float) -> Tensor:
    """The exact probability flow from t to s for x0 ~ N(mean, std^2 I): standardised values are
    carried along unchanged."""
    a, b = path.at(t), path.at(s)
    width_a = (a.alpha**2 * std**2 + a.sigma**2).sqrt()
    width_b = (b.alpha**2 * std**2 + b.sigma**2).sqrt()
    return expand(b.alpha, x) * mean + expand(width_b / width_a, x) * (
        x - expand(a.alpha, x) * mean
    )


def mixture_model(path: Path, means: Tensor, stds: Tensor, weights: Tensor) -> Model:
    """A Model whose denoiser is exact. Its spec describes samples of the shape of the means where
    that is an image's, and one number otherwise."""
    channels, side = (means.shape[1], means.shape[2]) if means.ndim == 4 else (1, 1)
    spec = ModelSpec(path=path.config, prediction="v", channels=channels, side=side, num_classes=0)
    return Model(MixtureDenoiser(path, means, stds, weights).double(), spec)
