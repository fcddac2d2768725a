"""A residual multilayer perceptron: the network for points, and for whatever has few numbers."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from core.networks.base import NetworkBase
from core.networks.embeddings import Embedded, zeroed
from core.setting import GuidanceRange


class MLPConfig(NetworkBase):
    """The size of a perceptron; see MLP."""

    LATER = ("guidance",)

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
    guidance: GuidanceRange | None = None
    """range of the weights of guidance that it is told; null: it is told none"""
    dropout: ClassVar[float] = 0.0

    @field_validator("width")
    @classmethod
    def _even(cls, width: int) -> int:
        if width % 2:
            raise ValueError(f"{width} must be even: times are embedded in pairs")
        return width

    def build(self, channels: int, side: int, num_classes: int) -> MLP:
        return MLP(self, (channels, side, side), num_classes if self.conditional else 0)


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


class Encoded(NamedTuple):
    """What the rest is given: the encoder's output [B, width, 1, 1], and the vector [B, E] that
    steers the blocks."""

    middle: Tensor
    embedding: Tensor


class MLP(Embedded):
    """`net(x, t, r, label) -> F`: residual blocks on all numbers of x, steered by the embedded times
    and label, as the blocks of the U-Net are. Every operation supports forward-mode
    differentiation. The output starts at zero. The first half of the blocks is its encoder."""

    def __init__(self, config: MLPConfig, shape: tuple[int, int, int], num_classes: int):
        width, size = config.width, math.prod(shape)
        guided = config.guidance is not None
        super().__init__(width, width, num_classes, config.second_time, guided, config.time_scale)
        self.shape, self.middle_width = shape, width
        self.half = (config.blocks + 1) // 2  # blocks of the encoder
        self.stem = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.blocks))
        self.head = zeroed(nn.Linear(width, size))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        r: Tensor | None = None,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
        features: bool = False,
    ) -> Tensor:
        """x [B, C, H, W], t [B] in [0, 1], r [B] or None, label [B] (int64) or None for the null
        label, guidance [B] or None for none, 1.0 -> [B, C, H, W]; with `features` what the encoder
        sees: [B, width, 1, 1]."""
        encoded = self.encode(x, t, r, label, guidance)
        return encoded.middle if features else self.decode(encoded)

    def encode(
        self,
        x: Tensor,
        t: Tensor,
        r: Tensor | None = None,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Encoded:
        """The first half of the blocks, and the middle one of an odd number."""
        embedding = F.silu(self.embedded(x, t, r, label, guidance)[0])
        h = self.stem(x.flatten(1))
        for block in self.blocks[: self.half]:
            h = block(h, embedding)
        return Encoded(h[:, :, None, None], embedding)

    def decode(self, encoded: Encoded) -> Tensor:
        """The second half, from what `encode` returned: [B, C, H, W]."""
        h = encoded.middle.flatten(1)
        for block in self.blocks[self.half :]:
            h = block(h, encoded.embedding)
        return self.head(F.silu(h)).view(len(h), *self.shape)
