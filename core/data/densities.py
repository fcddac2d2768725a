"""Distributions in the plane whose density is known exactly."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Density(ABC):
    """A distribution in the plane.

    num_classes: of the labels that are drawn with the points, 0 = none. half: histograms are taken
    over the window [-half, half]^2.
    """

    num_classes: int
    half: float

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points [count, 2] float64 and labels [count] int64, 0 where there are no classes."""

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """x [N, 2] -> [N], float64; minus infinity off the support."""

    @abstractmethod
    def shares(self, bins: int) -> Tensor:
        """[bins, bins] float64: the probability of each bin of the window, the first index along
        the first coordinate. Exact."""


class Checkerboard(Density):
    """Uniform on the 8 dark squares of a board of 4 x 4 over [-sqrt 3, sqrt 3]^2; that at the lower
    left is dark."""

    num_classes = 0
    half = math.sqrt(3)
    CELLS = 4

    def _dark(self) -> Tensor:
        i = torch.arange(self.CELLS)
        return (i[:, None] + i) % 2 == 0

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        dark = self._dark().nonzero()
        cell = dark[torch.randint(len(dark), (count,), generator=generator)]
        within = torch.rand(count, 2, dtype=torch.float64, generator=generator)
        points = ((cell + within) / self.CELLS * 2 - 1) * self.half
        return points, torch.zeros(count, dtype=torch.int64)

    def log_density(self, x: Tensor) -> Tensor:
        cell = ((x.double() / self.half + 1) / 2 * self.CELLS).floor().long()
        inside = ((cell >= 0) & (cell < self.CELLS)).all(1)
        i, j = cell.clamp(0, self.CELLS - 1).unbind(1)
        area = (2 * self.half) ** 2 / 2
        return torch.where(inside & self._dark()[i, j], -math.log(area), -math.inf).double()

    def shares(self, bins: int) -> Tensor:
        edges = torch.linspace(0, self.CELLS, bins + 1, dtype=torch.float64)
        cell = torch.arange(self.CELLS)[:, None]
        # [CELLS, bins]: which part of a cell each bin covers
        part = torch.minimum(edges[1:], cell + 1) - torch.maximum(edges[:-1], cell.double())
        part = part.clamp(min=0)
        return part.T @ self._dark().double() @ part / self._dark().sum()


class Mixture(Density):
    """sum_k weights_k N(means_k, std^2 I); a point's label is its component.

    Args:
        means: [K, 2]; weights: [K], None for equal ones.
    """

    def __init__(self, means: Tensor, std: float, half: float, weights: Tensor | None = None):
        self.means, self.std, self.half = means.double(), std, half
        given = torch.ones(len(means)) if weights is None else weights
        self.weights = given.double() / given.sum()
        self.num_classes = len(means)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, 2, dtype=torch.float64, generator=generator)
        return self.means[labels] + self.std * noise, labels

    def log_density(self, x: Tensor) -> Tensor:
        squares = (x.double()[:, None] - self.means).square().sum(2)  # [N, K]
        one = -squares / (2 * self.std**2) - math.log(2 * math.pi * self.std**2)
        return (one + self.weights.log()).logsumexp(1)

    def shares(self, bins: int) -> Tensor:
        edges = torch.linspace(-self.half, self.half, bins + 1, dtype=torch.float64)
        below = torch.special.ndtr((edges - self.means[..., None]) / self.std)  # [K, 2, bins + 1]
        first, second = below.diff(dim=2).unbind(1)  # [K, bins] each
        return (first * self.weights[:, None]).T @ second


def eight_gaussians() -> Mixture:
    """Eight Gaussians of standard deviation 0.2 on a circle, of such a radius that each coordinate
    has variance 1; 8 classes."""
    std, angle = 0.2, torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    radius = math.sqrt(2 * (1 - std**2))
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return Mixture(means, std, half=radius + 5 * std)
