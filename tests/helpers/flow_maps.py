"""Flow maps of Gaussian data: the exact one as a network, one that can be trained to it, and the
distance between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from core.diffusion.paths import expand, make_path
from core.model import Model
from teachers.exact import gaussian_flow, mixture_model
from tests.helpers.gaussian import MEAN, SHAPE, STD
from tests.helpers.models import model_of

PATH = make_path("rectified")
MEANS = torch.full(SHAPE, MEAN, dtype=torch.float64)
SECOND = {"name": "unet", "widths": (4,), "second_time": True}


def exact_velocity(x: Tensor, t: Tensor) -> Tensor:
    """dx/dt [B, ...] of the flow of N(MEAN, STD^2) on the rectified path."""
    variance = (1 - t).square() * STD**2 + t.square()
    slope = (t - (1 - t) * STD**2) / variance
    return -MEAN + expand(slope, x) * (x - expand(1 - t, x) * MEAN)


class ExactMeanVelocity(nn.Module):
    """(x - X_s(x)) / (t - s) for the exact flow map X_s of Gaussian data; at s = t its limit, the
    velocity."""

    def __init__(self):
        super().__init__()
        self.none = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        s = t - r
        variance_t = (1 - t).square() * STD**2 + t.square()
        width = (((1 - s).square() * STD**2 + s.square()) / variance_t).sqrt()
        there = expand(1 - s, x) * MEAN + expand(width, x) * (x - expand(1 - t, x) * MEAN)
        safe = torch.where(r > 0, r, torch.ones_like(r))
        mean = (x - there) / expand(safe, x)
        return self.none + torch.where(expand(r, x) > 0, mean, exact_velocity(x, t))


class AffineInXOfTwoTimes(nn.Module):
    """F = a(t, r) x + b(t, r), with a and b from a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        k = 0.5 * math.pi * torch.arange(1, 3, dtype=t.dtype)
        waves = [f(k * time[:, None]) for time in (t, r) for f in (torch.sin, torch.cos)]
        a, b = (
            self.net(torch.cat([t[:, None], r[:, None], *waves], 1)).view(-1, 2, 1, 1, 1).unbind(1)
        )
        return a * x + b


def flow_map_model(network: nn.Module) -> Model:
    """A model of mean velocities on the rectified path, of samples of SHAPE."""
    return model_of(network, "rectified", "mean-velocity", side=2, network=SECOND)


def exact_teacher(path: str = "vp-cosine") -> Model:
    """The exact denoiser of the Gaussian data, on another path than the flow maps'."""
    return mixture_model(make_path(path), MEANS[None], torch.tensor([STD]), torch.ones(1))


def map_error(model: Model, t: float, s: float) -> float:
    """Root mean square of the difference to the exact map from t to s, at samples of time t."""
    x = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, t, s = (torch.full((500,), v, dtype=torch.float64) for v in (1.0, t, s))
    start = gaussian_flow(PATH, x, one, t, MEANS, STD)
    exact = gaussian_flow(PATH, x, one, s, MEANS, STD)
    with torch.no_grad():
        return float((model.map(start.float(), t, s) - exact).square().mean().sqrt())
