"""An affine map of noise for each class: the network of Gaussian models."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from core.networks.base import NetworkBase
from core.networks.convolutional import check_latent


class AffineConfig(NetworkBase):
    """An affine map per class."""

    name: Literal["affine"] = "affine"
    """the network's kind"""
    latent: int = Field(default=32, ge=1)
    """directions with a scale of their own; all others share one"""
    conditional: bool = True
    """one map per class of data that has any"""
    dropout: ClassVar[float] = 0.0
    second_time: ClassVar[bool] = False

    def build(self, channels: int, side: int, num_classes: int) -> Affine:
        return Affine(self.latent, channels, side, num_classes if self.conditional else 0)


class Affine(nn.Module):
    """`net(x, t, r, label) -> image` for noise x [B, C, S, S]: mean + s x + U (d - s) U^T x, row
    `label` of each parameter.

    With orthonormal columns in U, pure noise becomes a Gaussian with variance d^2 along the columns
    and s^2 across them. The last row, that of the null label, is for images without a class. t and
    r are not read (see Generator).
    """

    def __init__(self, latent: int, channels: int, side: int, num_classes: int):
        super().__init__()
        check_latent(latent, channels, side)
        rows, size = num_classes + 1, channels * side**2
        self.num_classes = num_classes
        self.mean = nn.Parameter(torch.zeros(rows, size))
        self.directions = nn.Parameter(
            torch.eye(size, latent).repeat(rows, 1, 1)
        )  # U, [rows, D, latent]
        self.scales = nn.Parameter(torch.ones(rows, latent))  # d
        self.rest = nn.Parameter(torch.ones(rows))  # s

    def forward(
        self, x: Tensor, t: Tensor, r: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        if label is None:
            label = torch.full((len(x),), self.num_classes, device=x.device)
        n, s = x.flatten(1), self.rest[label, None]  # [B, D], [B, 1]
        U = self.directions[label]
        inner = torch.einsum("bdk,bd->bk", U, n) * (self.scales[label] - s)
        return (self.mean[label] + s * n + torch.einsum("bdk,bk->bd", U, inner)).view_as(x)
