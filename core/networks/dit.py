"""DiT, the diffusion transformer (Peebles and Xie 2023, arXiv 2212.09748): blocks of adaLN-zero on
patches.

An image becomes tokens of patch x patch pixels; each block is steered by the embedded times and
label through its layer norms and its two gates, which start at zero (sec. 3.2, "adaLN-Zero"), so
that every block starts as the identity and the output at zero. Positions are fixed sines and
cosines.

Deviations: the output is F alone, without the paper's learned variance, and the embeddings of times
and labels start as those of the U-Net do (core/networks/embeddings.py), where the authors' code
draws them from N(0, 0.02^2). Dropout, of which the paper has none, is where the library diffusers
has it: on what attention and the MLP return.

With captions each block also attends to one, between its attention to itself and its MLP, without a
gate and with a last layer that starts at zero (PixArt-alpha, Chen et al. 2024, fig. 4).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError
from core.networks.attention import attend
from core.networks.base import NetworkBase
from core.networks.embeddings import Embedded, sinusoidal_embedding, zeroed
from core.networks.text import CrossAttention, Read, TextConfig
from core.setting import GuidanceRange

WAVES = 256  # numbers of the embedding of a time, as in the authors' code


class DiTConfig(NetworkBase):
    """The DiT's size; see DiT."""

    LATER = ("text",)

    name: Literal["dit"] = "dit"
    """the network's kind"""
    width: int = Field(default=128, ge=4, le=8192)
    """numbers of a token; divisible by 4 and by heads"""
    depth: int = Field(default=6, ge=1, le=100)
    """blocks"""
    heads: int = Field(default=4, ge=1, le=1024)
    """heads of attention"""
    patch: int = Field(default=2, ge=1, le=4096)
    """pixels of a side of the patch that is one token"""
    mlp_ratio: float = Field(default=4.0, gt=0, le=64)
    """hidden numbers of the MLP in a block, over width"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """rate on what attention and MLP return"""
    second_time: bool = False
    """embed a second time besides t, for flow maps"""
    conditional: bool = True
    """embed the labels of data that has any"""
    time_scale: float = Field(default=1000.0, gt=0, le=1e6)
    """what times are multiplied by before they are embedded; the derivative in t grows with it"""
    guidance: GuidanceRange | None = None
    """range of the weights of guidance that it is told; null: it is told none"""
    text: TextConfig | None = None
    """how it reads captions, which every block attends to; null: it reads none"""

    @model_validator(mode="after")
    def _divides(self) -> DiTConfig:
        if self.width % 4:
            raise ValueError(
                f"width {self.width} must be divisible by 4: rows and columns are embedded in pairs"
            )
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide the width, {self.width}")
        return self

    def build(self, channels: int, side: int, num_classes: int) -> DiT:
        """A freshly initialised network; raises UserError if images of this side do not fit it."""
        return DiT(self, channels, side, num_classes if self.conditional else 0)


def positions(width: int, side: int) -> Tensor:
    """The embedding [side^2, width] of the places of a square of tokens, row by row: one half of
    the numbers for the column and one for the row, sines before cosines."""
    place = torch.arange(side, dtype=torch.float64)
    cos, sin = sinusoidal_embedding(place, width // 2, 1.0).chunk(2, dim=1)
    one = torch.cat([sin, cos], dim=1)  # [side, width / 2]
    columns, rows = one.repeat(side, 1), one.repeat_interleave(side, 0)
    return torch.cat([columns, rows], dim=1).float()


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """h [B, N, W] scaled and shifted by [B, W]."""
    return torch.addcmul(shift[:, None], h, 1 + scale[:, None])


class Attention(nn.Module):
    """Multi-head self-attention over the tokens [B, N, W]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))  # [B, heads, N, d] -> h's


class Block(nn.Module):
    """A block of adaLN-zero (Peebles and Xie 2023, fig. 3, second from the left)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, context: int = 0):
        super().__init__()
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.text = CrossAttention(width, context, heads) if context else None
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, embedding: Tensor, caption: Read | None = None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(embedding).chunk(
            6, dim=1
        )  # [B, W]
        inner = self.attention(modulated(self.norm1(h), shift_a, scale_a))
        h = torch.addcmul(h, gate_a[:, None], self.dropout(inner))
        if self.text is not None:
            h = h + self.text(h, *caption)
        inner = self.first(modulated(self.norm2(h), shift_m, scale_m))
        inner = self.second(F.gelu(inner, approximate="tanh"))
        return torch.addcmul(h, gate_m[:, None], self.dropout(inner))


class Encoded(NamedTuple):
    """What the second half of the blocks is given: the tokens in their places [B, W, h, w], the
    embedding of all that the network is told [B, W], and the caption that was read, if any."""

    middle: Tensor
    embedding: Tensor
    caption: Read | None


class DiT(Embedded):
    """`net(x, t, r, label, guidance, text) -> F`, the raw output; what F means is the Model's
    business. The output starts at zero, and every operation has a rule for forward-mode
    differentiation.

    Args:
        channels, side: of the image; `side` must be divisible by the patch.
        num_classes: 0 = unconditional. Otherwise labels are 0..num_classes, where num_classes is
            the null label.

    Raises:
        UserError: if the image does not fit the network.
    """

    def __init__(self, config: DiTConfig, channels: int, side: int, num_classes: int):
        width, patch = config.width, config.patch
        if side % patch:
            raise UserError(
                f"images of side {side} do not fit patches of side {patch}: change network.patch, or "
                f"resize the images to a multiple of {patch}"
            )
        guided, scale = config.guidance is not None, config.time_scale
        super().__init__(WAVES, width, num_classes, config.second_time, guided, scale, config.text)
        self.channels, self.side, self.patch = channels, side, patch
        self.middle_width = width
        self.stem = nn.Conv2d(channels, width, patch, stride=patch)
        self.register_buffer("positions", positions(width, side // patch), persistent=False)
        hidden = max(1, round(config.mlp_ratio * width))
        self.blocks = nn.ModuleList(
            Block(width, config.heads, hidden, config.dropout, self.context)
            for _ in range(config.depth)
        )
        self.half = (config.depth + 1) // 2  # blocks of the encoder
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.head = zeroed(nn.Linear(width, channels * patch**2))
        for layer in (self.stem, *(m for m in self.blocks.modules() if isinstance(m, nn.Linear))):
            if layer.weight.any():  # as in the authors' code: Xavier, but for what starts at zero
                nn.init.xavier_uniform_(layer.weight.flatten(1))
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        r: Tensor | None = None,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
        text: Tensor | None = None,
        features: bool = False,
    ) -> Tensor:
        """x [B, C, H, W], t [B] in [0, 1], r [B] or None, label [B] (int64) or None for the null
        label, guidance [B] or None for none, 1.0, text [B, L] (int64) or None for the null caption
        -> [B, C, H, W]; with `features` what the encoder sees in place of that: the tokens after
        half of the blocks, [B, width, h, w]."""
        encoded = self.encode(x, t, r, label, guidance, text)
        return encoded.middle if features else self.decode(encoded)

    def encode(
        self,
        x: Tensor,
        t: Tensor,
        r: Tensor | None = None,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Encoded:
        """The first half of the blocks."""
        embedding, caption = self.embedded(x, t, r, label, guidance, text)
        embedding = F.silu(embedding)
        h = self.stem(x).flatten(2).transpose(1, 2) + self.positions.to(x.dtype)  # [B, N, W]
        for block in self.blocks[: self.half]:
            h = block(h, embedding, caption)
        side = self.side // self.patch
        return Encoded(h.transpose(1, 2).unflatten(2, (side, side)), embedding, caption)

    def decode(self, encoded: Encoded) -> Tensor:
        """The second half, from what `encode` returned: [B, C, H, W]."""
        embedding = encoded.embedding
        h = encoded.middle.flatten(2).transpose(1, 2)
        for block in self.blocks[self.half :]:
            h = block(h, embedding, encoded.caption)
        h = self.head(modulated(self.norm(h), *self.modulation(embedding).chunk(2, dim=1)))
        places = h.transpose(1, 2).unflatten(2, encoded.middle.shape[2:])
        return F.pixel_shuffle(places, self.patch)
