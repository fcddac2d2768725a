"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, sec. 3.1), under the
names that the diffusers library gives to the parameters of its AutoencoderKL.

Residual blocks of group normalisation, SiLU and 3x3 convolutions; a strided convolution between
levels on the way down, the nearest neighbour and a convolution on the way up; in the middle one
attention over all places. Weights go from here to diffusers and back without a mapping.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError
from core.networks.base import NetworkBase

LOG_VARIANCE = (-30.0, 20.0)  # of a latent: beyond it the exponential says nothing


class AutoencoderKLConfig(NetworkBase):
    """The size of an autoencoder."""

    name: Literal["autoencoder-kl"] = "autoencoder-kl"
    """the network's kind"""
    latent: int = Field(default=4, ge=1, le=1024)
    """channels of the latents"""
    widths: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = Field(
        default=(64, 128), min_length=1, max_length=10
    )
    """channels at each level, finest first; each level but the last halves the side"""
    blocks: int = Field(default=2, ge=1, le=100)
    """residual blocks per level; the decoder has one more"""
    groups: int = Field(default=8, ge=1, le=8192)
    """of the group normalisation; a divisor of every width"""
    attention: bool = True
    """attention between the two residual blocks in the middle"""
    quant_conv: bool = True
    """a 1x1 convolution after the encoder"""
    post_quant_conv: bool = True
    """a 1x1 convolution before the decoder"""
    conditional: ClassVar[bool] = False
    dropout: ClassVar[float] = 0.0
    second_time: ClassVar[bool] = False

    @model_validator(mode="after")
    def _divides(self) -> AutoencoderKLConfig:
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"groups={self.groups} does not divide the width {width}")
        return self

    @property
    def factor(self) -> int:
        """How many times smaller the side of the latents is."""
        return 2 ** (len(self.widths) - 1)

    def build(self, channels: int, side: int, num_classes: int) -> AutoencoderKL:
        if side % self.factor:
            raise UserError(
                f"images of side {side} do not divide by {self.factor}, as {len(self.widths)} "
                "levels of an autoencoder want it: give fewer widths, or resize the images"
            )
        smaller = side // self.factor
        if self.latent * smaller**2 > channels * side**2:
            raise UserError(
                f"network.latent={self.latent}: latents of {self.latent}x{smaller}x{smaller} have "
                f"more numbers than images of {channels}x{side}x{side}: give fewer channels or "
                "more widths"
            )
        return AutoencoderKL(self, channels)


def _norm(config: AutoencoderKLConfig, width: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.groups, width, eps=1e-6)


class _ResNet(nn.Module):
    def __init__(self, config: AutoencoderKLConfig, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.norm2 = _norm(config, inputs), _norm(config, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Attention(nn.Module):
    """One head over all places."""

    def __init__(self, config: AutoencoderKLConfig, width: int):
        super().__init__()
        self.group_norm = _norm(config, width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)
        h = F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out[0](h).transpose(1, 2).reshape(x.shape)


class _Middle(nn.Module):
    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        width = config.widths[-1]
        self.resnets = nn.ModuleList(_ResNet(config, width, width) for _ in range(2))
        found = [_Attention(config, width)] if config.attention else []
        self.attentions = nn.ModuleList(found)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class _Down(nn.Module):
    """Pads at the right and below before it strides, as the authors' code does."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Up(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    def __init__(
        self, config: AutoencoderKLConfig, inputs: int, outputs: int, count: int, resampled: str
    ):
        super().__init__()
        sizes = [inputs, *[outputs] * count]
        pairs = pairwise(sizes)
        self.resnets = nn.ModuleList(_ResNet(config, a, b) for a, b in pairs)
        self.downsamplers = nn.ModuleList([_Down(outputs)] if resampled == "down" else [])
        self.upsamplers = nn.ModuleList([_Up(outputs)] if resampled == "up" else [])

    def forward(self, x: Tensor) -> Tensor:
        for part in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = part(x)
        return x


def _levels(
    config: AutoencoderKLConfig, widths: tuple[int, ...], count: int, way: str
) -> nn.ModuleList:
    """One level for each of `widths`, all but the last resampled."""
    levels, inputs = nn.ModuleList(), widths[0]
    for i, width in enumerate(widths):
        levels.append(_Level(config, inputs, width, count, way if i + 1 < len(widths) else ""))
        inputs = width
    return levels


class _Encoder(nn.Module):
    def __init__(self, config: AutoencoderKLConfig, channels: int):
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks = _levels(config, widths, config.blocks, "down")
        self.mid_block = _Middle(config)
        self.conv_norm_out = _norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class _Decoder(nn.Module):
    def __init__(self, config: AutoencoderKLConfig, channels: int):
        super().__init__()
        widths = config.widths[::-1]
        self.conv_in = nn.Conv2d(config.latent, widths[0], 3, padding=1)
        self.mid_block = _Middle(config)
        self.up_blocks = _levels(config, widths, config.blocks + 1, "up")
        self.conv_norm_out = _norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Images [B, C, S, S] in [-1, 1] to latents [B, latent, S / factor, S / factor] and back.

    scale: a buffer, what latents are multiplied by to have variance 1; 0 where it has not been
    measured.

    `net(x, t, r)` decodes the first numbers of the noise x [B, C, S, S], as other generators of one
    step do: what the prior alone gives. `net(image, t, r, noise=eps)` encodes the image and decodes
    mean + std * eps; it returns (image, mean, log variance), in one forward, so that wrappers for
    many processes see all that is trained.
    """

    def __init__(self, config: AutoencoderKLConfig, channels: int):
        super().__init__()
        self.config, self.channels, twice = config, channels, 2 * config.latent
        self.encoder, self.decoder = _Encoder(config, channels), _Decoder(config, channels)
        self.quant_conv = nn.Conv2d(twice, twice, 1) if config.quant_conv else None
        self.post_quant_conv = (
            nn.Conv2d(config.latent, config.latent, 1) if config.post_quant_conv else None
        )
        self.register_buffer("scale", torch.zeros((), dtype=torch.float32))

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents [B, latent, h, w], as they are, not scaled."""
        h = self.encoder(images)
        h = h if self.quant_conv is None else self.quant_conv(h)
        mean, log_variance = h.chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents that are not scaled."""
        h = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        return self.decoder(h)

    def forward(
        self, x: Tensor, t: Tensor, r: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        if noise is None:
            C, side = self.config.latent, x.shape[-1] // self.config.factor
            code = x.flatten(1)[:, : C * side**2].view(-1, C, side, side)
            return self.decode(code / torch.where(self.scale > 0, self.scale, 1.0))
        mean, log_variance = self.moments(x)
        code = mean + (0.5 * log_variance).exp() * noise
        return self.decode(code), mean, log_variance
