"""Gaussian data, and a network that can represent its exact flow map: affine in x, smooth in t."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MEAN, STD = 0.3, 0.5
SHAPE = (1, 2, 2)


class AffineInX(nn.Module):
    """F = a(t) x + b(t), with a and b from a small network of t."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(9, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(
        self, x: Tensor, t: Tensor, r: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        k = torch.arange(1, 5, dtype=t.dtype)
        features = torch.cat(
            [
                t[:, None],
                torch.sin(math.pi / 2 * k * t[:, None]),
                torch.cos(math.pi / 2 * k * t[:, None]),
            ],
            1,
        )
        a, b = self.net(features).view(-1, 2, 1, 1, 1).unbind(1)
        return a * x + b
