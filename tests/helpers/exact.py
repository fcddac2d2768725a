"""Denoisers with known answers, independent of the ones under test, for the samplers' tests."""

from __future__ import annotations

import numpy as np
import torch
from scipy import integrate, stats
from torch import Tensor

from core.diffusion.parameterisations import Denoised
from core.diffusion.paths import Path
from teachers.exact import mixture_model

MEANS, STDS, WEIGHTS = (
    np.array([-1.0, 0.2, 1.5]),
    np.array([0.3, 0.4, 0.6]),
    np.array([0.5, 0.2, 0.3]),
)
MEAN = float(WEIGHTS @ MEANS)
STD = float((WEIGHTS @ (STDS**2 + MEANS**2) - MEAN**2) ** 0.5)


class GaussianDenoiser:
    """The exact denoiser of x0 ~ N(mean, std^2), a mean and a std for each sample of the batch."""

    def __init__(self, path: Path, mean: Tensor, std: Tensor):
        self.path, self.mean, self.std = path, mean, std

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        c = self.path.at(t)
        eps = (
            c.sigma * (x - c.alpha * self.mean) / (c.alpha**2 * self.std**2 + c.sigma**2)
        )  # -sigma times the score
        x0 = self.mean + c.alpha * self.std**2 * (x - c.alpha * self.mean) / (
            c.alpha**2 * self.std**2 + c.sigma**2
        )
        return Denoised(x0, eps)

    def map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.flow(x, t, s)

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation at t."""
        c = self.path.at(t)
        return c.alpha * self.mean, (c.alpha**2 * self.std**2 + c.sigma**2).sqrt()

    def flow(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact probability flow: standardised values are carried along unchanged."""
        (mean_t, std_t), (mean_s, std_s) = self.marginal(t), self.marginal(s)
        return mean_s + std_s / std_t * (x - mean_t)


def mixture(path: Path):
    """A Model that denoises the mixture MEANS, STDS, WEIGHTS exactly, in one dimension."""
    return mixture_model(
        path, torch.tensor(MEANS)[:, None], torch.tensor(STDS), torch.tensor(WEIGHTS)
    )


def mixture_cdf(x: np.ndarray) -> np.ndarray:
    return sum(w * stats.norm.cdf(x, m, s) for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True))


def mixture_flow(path: Path, x: np.ndarray, t: float, s: float) -> np.ndarray:
    """x [B] carried from t to s by the mixture's probability flow, integrated by scipy to ten
    digits.

    In straight coordinates y = x / (alpha + sigma), w = sigma / (alpha + sigma), where all paths
    are one: dy/dw = eps - x0 with eps = -w d log p(y) / dy.
    """

    def coordinates(time: float) -> tuple[float, float]:
        c = path.at(torch.tensor(time, dtype=torch.float64))
        return float(c.alpha + c.sigma), float(c.sigma / (c.alpha + c.sigma))

    def slope(w: float, y: np.ndarray) -> np.ndarray:
        width = np.sqrt((1 - w) ** 2 * STDS**2 + w**2)  # [K]
        z = (y[:, None] - (1 - w) * MEANS) / width  # [B, K]
        density = WEIGHTS * stats.norm.pdf(z) / width
        score = -(density * z / width).sum(1) / density.sum(1)
        x0 = (y + w**2 * score) / (1 - w) if w < 1 else MEAN
        return -w * score - x0

    (scale_t, w_t), (scale_s, w_s) = coordinates(t), coordinates(s)
    solution = integrate.solve_ivp(
        slope, (w_t, w_s), x / scale_t, method="DOP853", rtol=1e-11, atol=1e-12
    )
    return scale_s * solution.y[:, -1]


def fitted_order(steps: list[int], errors: list[float]) -> float:
    """Minus the slope of log error over log steps."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
