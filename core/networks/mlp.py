"""A residual multilayer perceptron: the network for points, and for whatever has few numbers."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from core.networks.base import NetworkBase
from core.networks.unet import embedded_label, embedder, sinusoidal_embedding, zeroed


class MLPConfig(NetworkBase):
    """The size of a perceptron; see MLP."""

    name: Literal["mlp"] = "mlp"
    """the network's kind"""
    width: int = Field(default=128, ge=4, le=8192)
    """numbers of a hidden layer; even, since times are embedded in pairs"""
    blocks: int = Field(default=3, ge=1, le=100)
    """residual blocks of two layers each"""
    second_time: bool = False
    """embed a second time besides t, for flow maps"""
    conditional: bool = True
    """embed the labels of data that has any"""
    time_scale: float = Field(default=1000.0, gt=0, le=1e6)
    """what times are multiplied by before they are embedded; the derivative in t grows with it"""
    dropout: ClassVar[float] = 0.0

    @field_validator("width")
    @classmethod
    def _even(cls, width: int) -> int:
        if width % 2:
            raise ValueError(f"{width} must be even: times are embedded in pairs")
        return width

    def build(self, channels: int, side: int, num_classes: int) -> MLP:
        return MLP(self, channels * side**2, num_classes if self.conditional else 0)


class _Block(nn.Module):
    """h + second(silu(first(silu(h)) (1 + scale) + shift)), scale and shift from the embedding."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), zeroed(nn.Linear(width, width))
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        inner = self.first(F.silu(h)) * (1 + scale) + shift
        return h + self.second(F.silu(inner))


class MLP(nn.Module):
    """`net(x, t, r, label) -> F`: residual blocks on all numbers of x, steered by the embedded times
    and label, as the blocks of the U-Net are. Every operation supports forward-mode
    differentiation. The output starts at zero."""

    def __init__(self, config: MLPConfig, size: int, num_classes: int):
        super().__init__()
        width = config.width
        self.width, self.time_scale, self.num_classes = width, config.time_scale, num_classes
        self.time = embedder(width, width)
        self.second_time = embedder(width, width, from_zero=True) if config.second_time else None
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.stem = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.blocks))
        self.head = zeroed(nn.Linear(width, size))

    def _embedded(self, layers: nn.Module, t: Tensor, dtype: torch.dtype) -> Tensor:
        return layers(sinusoidal_embedding(t, self.width, self.time_scale).to(dtype))

    def forward(
        self, x: Tensor, t: Tensor, r: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        """x [B, C, H, W], t [B] in [0, 1], r [B] or None, label [B] (int64) or None for the null
        label -> [B, C, H, W]."""
        if (r is not None) != (self.second_time is not None):
            raise ValueError(
                "r must be given exactly when the network was built with second_time=True"
            )
        embedding = self._embedded(self.time, t, x.dtype)
        if r is not None:
            embedding = embedding + self._embedded(self.second_time, r, x.dtype)
        if self.label is not None:
            embedding = embedding + embedded_label(self.label, label, x)
        elif label is not None:
            raise ValueError(
                "this network is unconditional: it was built with num_classes=0, so label must be "
                "None"
            )
        embedding, h = F.silu(embedding), self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(F.silu(h)).view_as(x)
