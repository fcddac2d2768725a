"""Distances between points of the plane [N, 2] and the distribution that they should have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.data.densities import Density

DIRECTIONS = 64  # of the sliced distance, spread evenly over the half circle
BINS = 32  # of the histogram, along each side
MIXED = 0.01  # share of the exact distribution in the histogram


def projected(x: Tensor) -> Tensor:
    """Points [N, 2] -> [DIRECTIONS, N] float64: their places along each direction, in order."""
    angle = math.pi * (torch.arange(DIRECTIONS, dtype=torch.float64) + 0.5) / DIRECTIONS
    return (torch.stack([angle.cos(), angle.sin()], 1) @ x.double().T).sort(dim=1).values


def sliced_wasserstein(x: Tensor, reference: Tensor) -> float:
    """The sliced 2-Wasserstein distance (Bonneel et al. 2015, def. 3) of two sets of points, each
    as `projected` gives it, [DIRECTIONS, N] and [DIRECTIONS, M].

    Along each direction the optimal plan is monotone: W2^2 is the integral of the squared difference
    of the two quantile functions, which are steps, so the sum over the union of both steps is
    exact. The mean over directions is taken at even angles in place of random ones: it is the
    midpoint rule for a smooth periodic integrand, and the same for everyone.
    """
    N, M = x.shape[1], reference.shape[1]
    ends = torch.cat([M * torch.arange(1, N + 1), N * torch.arange(1, M + 1)]).unique()
    weight = ends.diff(prepend=ends.new_zeros(1)).double() / (N * M)
    gaps = x[:, (ends - 1) // M] - reference[:, (ends - 1) // N]
    return float((gaps.square() @ weight).mean().sqrt())


def histogram_kl(x: Tensor, density: Density) -> float:
    """KL(p || q) in nats over the BINS x BINS bins of the density's window, and one more for all
    that lies outside it.

    p is exact; q is 0.99 of the shares of points in the bins and 0.01 of p, so that an empty bin
    costs log 100 for its share and not infinity: the skew divergence of Lee 1999 with alpha = 0.99.
    With N exact points it is near (K - 1) / (2 N) for K bins that p reaches, and not 0.
    """
    half = density.half
    # above the window's last edge counts as outside, below its first too
    bins = ((x.double() / half + 1) / 2 * BINS).clamp(-1, BINS).floor().long()
    inside = ((bins >= 0) & (bins < BINS)).all(1)
    index = torch.where(inside, bins[:, 0] * BINS + bins[:, 1], BINS**2)
    counts = torch.bincount(index, minlength=BINS**2 + 1).double()
    exact = density.shares(BINS).flatten()
    exact = torch.cat([exact, (1 - exact.sum()).clamp(min=0)[None]])
    given = (1 - MIXED) * counts / len(x) + MIXED * exact
    reached = exact > 0
    return float((exact * (exact / given).log())[reached].sum())
