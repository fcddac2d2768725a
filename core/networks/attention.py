"""Attention as two matrix products: PyTorch's fused kernels have no rule for forward-mode
differentiation, and are slower on a processor at the lengths of small images."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, counts: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for queries [..., N, d], keys [..., M, d] and values
    [..., M, e] -> [..., N, e] (Vaswani et al. 2017, eq. 1).

    counts: bool, [..., N, M] or what broadcasts to it: keys that do not count have weight 0
    exactly. Of each query one has to count.
    """
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if counts is not None:
        scores = scores.masked_fill(~counts, -torch.inf)
    return scores.softmax(dim=-1) @ v
