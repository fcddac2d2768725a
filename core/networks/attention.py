"""Attention as two matrix products: PyTorch's fused kernels have no rule for forward-mode
differentiation, and are slower on a processor at the lengths of small images."""

from __future__ import annotations

from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for queries [..., N, d], keys [..., M, d] and values
    [..., M, e] -> [..., N, e] (Vaswani et al. 2017, eq. 1)."""
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ v
