"""Between two noises."""

from __future__ import annotations

import torch
from torch import Tensor


def spherical(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """[K, B, ...]: the points at the shares [K] of the arc from a to b, both [B, ...] (slerp,
    Shoemake 1985, for noises of images White 2016 and DDIM's app. D.5).

    The arc keeps the length that noise has, about sqrt(D) in D numbers. On the straight line the
    middle of two independent noises is a factor sqrt(1/2) shorter, which no sample of the prior is.
    Shares 0 and 1 are a and b to the bit.
    """
    x, y = a.double().flatten(1), b.double().flatten(1)
    cosine = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
    angle = cosine.clamp(-1, 1).arccos()[:, None]  # [B, 1]
    s = share.double().to(a.device).view(-1, 1, 1)
    small = angle < 1e-6  # the two are one, or nearly: the straight line
    sine = torch.where(small, 1.0, angle.sin())
    first = torch.where(small, 1 - s, ((1 - s) * angle).sin() / sine)
    second = torch.where(small, s, (s * angle).sin() / sine)
    arc = (first * x + second * y).to(a.dtype).view(-1, *a.shape)
    ends = ((s == 0, a), (s == 1, b))
    for at, end in ends:
        arc = torch.where(at.view(-1, *[1] * a.ndim), end, arc)
    return arc
