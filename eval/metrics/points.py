"""Distances between points of the plane [N, 2] and the distribution that they should have."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from core.data.densities import Density

DIRECTIONS = 64  # of the sliced distance, spread evenly over the half circle
BINS = 32  # of the histogram, along each side
MIXED = 0.01  # share of the exact distribution in the histogram


def projected(x: Tensor) -> Tensor:
    """Points [N, 2] -> [DIRECTIONS, N] float64: their places along each direction, in order."""
    angle = math.pi * (torch.arange(DIRECTIONS, dtype=torch.float64) + 0.5) / DIRECTIONS
    return (torch.stack([angle.cos(), angle.sin()], 1) @ x.double().T).sort(dim=1).values


class Stretches(NamedTuple):
    """What a distance to a sorted reference needs of it, for sets of N points: over each of N equal
    stretches of probability the mean of its quantile function, and its variance, averaged over the
    stretches. mean: [DIRECTIONS, N]; variance: [DIRECTIONS]."""

    mean: Tensor
    variance: Tensor


def stretches(reference: Tensor, count: int) -> Stretches:
    """Of a reference as `projected` gives it, [DIRECTIONS, M], for sets of `count` points. Exact for
    all sizes: the integrals of a step function and its square are linear between its steps."""
    M = reference.shape[1]
    numerators = torch.arange(count + 1) * M  # the stretches end at these / count, in steps
    whole, part = numerators // count, (numerators % count).double() / count

    def integrals(steps: Tensor) -> Tensor:
        total = F.pad(steps.cumsum(1), (1, 1))  # [DIRECTIONS, M + 2]
        ahead = F.pad(steps, (0, 1))
        return (total[:, whole] + part * ahead[:, whole]).diff(dim=1) * (count / M)

    mean = integrals(reference)
    return Stretches(mean, (integrals(reference.square()) - mean.square()).mean(1))


def sliced_wasserstein(x: Tensor, reference: Stretches) -> float:
    """The sliced 2-Wasserstein distance (Bonneel et al. 2015, def. 3) of N points, as `projected`
    gives them, [DIRECTIONS, N], from a reference of any size.

    Along each direction the optimal plan is monotone: W2^2 is the integral of the squared difference
    of the two quantile functions. Where one of them is constant, that is its squared distance from
    the other's mean and the other's variance. The mean over directions is taken at even angles in
    place of random ones: it is the midpoint rule for a smooth periodic integrand, and the same for
    everyone.
    """
    squares = (x - reference.mean).square().mean(1) + reference.variance
    return float(squares.mean().clamp(min=0).sqrt())


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
