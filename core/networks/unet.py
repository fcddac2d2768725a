"""The U-Net of this repository: the DDPM/ADM family at sizes from a laptop's processor to a GPU.

Residual blocks with adaptive group norm (Dhariwal and Nichol 2021, eq. 8), self-attention at chosen
levels, sinusoidal time embedding (Ho et al. 2020, app. B), and optionally pixel-unshuffle at the
door, so that a 28x28 image is worked on as 14x14 patches of 2x2. In float32 every operation of
the bare network has a rule for forward-mode differentiation, and under autocast not all have.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError
from core.networks.attention import attend
from core.networks.base import NetworkBase
from core.networks.embeddings import Embedded, zeroed
from core.networks.text import CrossAttention, Read, TextConfig
from core.setting import GuidanceRange


class UNetConfig(NetworkBase):
    """The U-Net's size; see UNet."""

    LATER = ("time_scale", "guidance", "text")

    name: Literal["unet"] = "unet"
    """the network's kind"""
    widths: tuple[Annotated[int, Field(ge=4, le=8192)], ...] = Field(
        default=(64, 128), min_length=1, max_length=10
    )
    """channels at each level, finest first"""
    blocks: int = Field(default=2, ge=1, le=100)
    """residual blocks per level"""
    attention: tuple[Annotated[int, Field(ge=0)], ...] = (1,)
    """levels with self-attention, 0 = finest"""
    head_width: int = Field(default=32, ge=1)
    """channels per attention head; a level with fewer has one head"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """rate inside the residual blocks"""
    patch: int = Field(default=1, ge=1, le=4096)
    """pixel-unshuffle factor at the door; 1 = none"""
    second_time: bool = False
    """embed a second time besides t, for flow maps"""
    conditional: bool = True
    """embed the labels of data that has any"""
    time_scale: float = Field(default=1000.0, gt=0, le=1e6)
    """what times are multiplied by before they are embedded; the derivative in t grows with it"""
    guidance: GuidanceRange | None = None
    """range of the weights of guidance that it is told; null: it is told none"""
    text: TextConfig | None = None
    """how it reads captions, which it attends to at the levels `attention`; null: it reads none"""

    @field_validator("widths")
    @classmethod
    def _even(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if widths[0] % 2:
            raise ValueError(f"the first, {widths[0]}, must be even: times are embedded in pairs")
        return widths

    def build(self, channels: int, side: int, num_classes: int) -> UNet:
        """A freshly initialised network; raises UserError if images of this side do not fit it."""
        return UNet(
            channels=channels,
            side=side,
            widths=self.widths,
            blocks=self.blocks,
            attention=self.attention,
            head_width=self.head_width,
            dropout=self.dropout,
            num_classes=num_classes if self.conditional else 0,
            second_time=self.second_time,
            patch=self.patch,
            time_scale=self.time_scale,
            guidance=self.guidance is not None,
            text=self.text,
        )


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups of at least 4 channels, as is usual."""
    groups = min(32, channels // 4)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=1e-5)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv, twice; the second norm is scaled and shifted by the embedding
    (adaptive group norm)."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float):
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions, with a residual connection."""

    def __init__(self, channels: int, head_width: int):
        super().__init__()
        self.heads = max(1, channels // head_width)
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)  # [B, HW, C]
        q, k, v = (
            self.qkv(h).view(B, H * W, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        )  # [B, heads, HW, d]
        h = attend(q, k, v).transpose(1, 2).reshape(B, H * W, C)
        return x + self.out(h).transpose(1, 2).reshape(B, C, H, W)


class AttentionToText(nn.Module):
    """Every position attends to the states of a caption, with a residual connection."""

    def __init__(self, channels: int, context: int, head_width: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.attend = CrossAttention(channels, context, max(1, channels // head_width))

    def forward(self, x: Tensor, caption: Read) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # [B, HW, C]
        return x + self.attend(h, *caption).transpose(1, 2).view_as(x)


class Stage(nn.Module):
    """A residual block, then attention where the level asks for it: to itself, and to a caption
    whose states are of `context` numbers, 0 = none."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        dropout: float,
        attention: bool,
        head_width: int,
        context: int = 0,
    ):
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, embedding, dropout)
        self.attention = SelfAttention(outputs, head_width) if attention else nn.Identity()
        reads = attention and context
        self.text = AttentionToText(outputs, context, head_width) if reads else None

    def forward(self, x: Tensor, embedding: Tensor, caption: Read | None = None) -> Tensor:
        h = self.attention(self.block(x, embedding))
        return h if self.text is None else self.text(h, caption)


class Encoded(NamedTuple):
    """What the way up is given: the middle's output [B, C, h, w], the skips finest first, the
    embedding of all that the network is told [B, E], and the caption that was read, if any."""

    middle: Tensor
    skips: list[Tensor]
    embedding: Tensor
    caption: Read | None


class UNet(Embedded):
    """`net(x, t, r, label, guidance, text) -> F`, the raw output; what F means is the Model's
    business.

    Args:
        channels, side: of the image; `side` must be divisible by `patch * 2 ** (len(widths) - 1)`.
        widths: channels at each level, finest first; `blocks` residual blocks a level (one more on
            the way up).
        attention: levels (0 = finest) with self-attention after every block; `head_width` channels
            a head.
        dropout: inside the residual blocks.
        num_classes: 0 = unconditional. Otherwise labels are 0..num_classes, where num_classes is
            the null label.
        second_time: embeds a second time r besides t, for jumps and flow maps.
        patch: pixel-unshuffle factor at the door; 1 = none.
        time_scale: what times are multiplied by before they are embedded. 1000 is DDPM's; the
            derivative in t grows with it, so methods that differentiate in t want less.
        guidance: embeds the weight of guidance, in a way that starts at nothing.
        text: how captions are read, which the levels of `attention` attend to, in a way that starts
            at nothing too; None = none.

    Raises:
        UserError: if the image does not fit the network.
    """

    def __init__(
        self,
        channels: int,
        side: int,
        widths: tuple[int, ...] = (64, 128),
        blocks: int = 2,
        attention: tuple[int, ...] = (1,),
        head_width: int = 32,
        dropout: float = 0.0,
        num_classes: int = 0,
        second_time: bool = False,
        patch: int = 1,
        time_scale: float = 1000.0,
        guidance: bool = False,
        text: TextConfig | None = None,
    ):
        stride = patch * 2 ** (len(widths) - 1)
        if side % stride:
            raise UserError(
                f"images of side {side} do not fit a network of stride {stride} (patch {patch}, {len(widths)} levels): "
                f"change network.patch or network.widths, or resize the images to a multiple of {stride}"
            )
        if bad := [level for level in attention if not 0 <= level < len(widths)]:
            raise UserError(
                f"network.attention names level {bad[0]}, but the levels are 0 to {len(widths) - 1}"
            )
        if text is not None and not attention:
            raise UserError(
                "network.text needs network.attention: captions are attended to at its levels"
            )
        for level in attention:
            heads = max(1, widths[level] // head_width)
            if widths[level] % heads:
                raise UserError(
                    f"network.head_width={head_width} does not divide the {widths[level]} channels "
                    f"of level {level}, which network.attention names"
                )
        embedding = 4 * widths[0]
        super().__init__(widths[0], embedding, num_classes, second_time, guidance, time_scale, text)
        self.channels, self.side, self.patch = channels, side, patch
        self.middle_width = widths[-1]

        def stage(inputs: int, outputs: int, level: int) -> Stage:
            here = level in attention
            return Stage(inputs, outputs, embedding, dropout, here, head_width, self.context)

        self.stem = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, current = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(stage(current, width, level))
                current = width
                skips.append(current)
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
                skips.append(current)
        last = len(widths) - 1
        self.middle = nn.ModuleList(
            [stage(current, current, last), ResidualBlock(current, current, embedding, dropout)]
        )
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(current + skips.pop(), width, level))
                current = width
            if level > 0:
                self.grow.append(nn.Conv2d(current, current, 3, padding=1))
        self.head = nn.Sequential(
            group_norm(current),
            nn.SiLU(),
            zeroed(nn.Conv2d(current, channels * patch**2, 3, padding=1)),
        )
        self.blocks = blocks

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
        -> [B, C, H, W]; with `features` what the encoder sees in place of that: the output of the
        middle, [B, widths[-1], h, w]."""
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
        """The way down and the middle."""
        embedding, caption = self.embedded(x, t, r, label, guidance, text)
        embedding = F.silu(embedding)
        h = self.stem(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        skips, down = [h], iter(self.down)
        for level in range(len(self.shrink) + 1):
            for _ in range(self.blocks):
                h = next(down)(h, embedding, caption)
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
                skips.append(h)
        first, last = self.middle
        h = last(first(h, embedding, caption), embedding)
        return Encoded(h, skips, embedding, caption)

    def decode(self, encoded: Encoded) -> Tensor:
        """The way up, from what `encode` returned: [B, C, H, W]."""
        h, skips, embedding = encoded.middle, list(encoded.skips), encoded.embedding
        up = iter(self.up)
        for level in range(len(self.grow) + 1):
            for _ in range(self.blocks + 1):
                joined = torch.cat([h, skips.pop()], dim=1)
                h = next(up)(joined, embedding, encoded.caption)
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = self.head(h)
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h
