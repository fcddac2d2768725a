"""Plain residual networks from a vector to an image and from an image to a vector, without
normalisation layers.

The building plan of R3GAN (Huang et al. 2024, arXiv 2501.05441, sec. 4): residual blocks of
convolutions and leaky ReLU, the last convolution of each starting at zero as in Fixup, resampling
between levels, one linear layer at the vector end, labels embedded. Differences: two 3x3
convolutions a block in place of a grouped one between two 1x1, since grouped convolutions are slow
on a processor; and pixel-shuffle at the image end where `patch` > 1, as in the U-Net.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from core.config import Strict
from core.errors import UserError
from core.networks.base import NetworkBase

SLOPE = 0.2  # of the leaky ReLU


class ConvolutionalConfig(Strict):
    """The size of a convolutional network."""

    widths: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = Field(
        default=(64, 128), min_length=1, max_length=10
    )
    """channels at each level, finest first"""
    blocks: int = Field(default=2, ge=1, le=100)
    """residual blocks per level"""
    patch: int = Field(default=1, ge=1, le=4096)
    """pixel-shuffle factor at the image's end"""
    dropout: ClassVar[float] = 0.0
    second_time: ClassVar[bool] = False

    def coarsest(self, side: int) -> int:
        """The side of the smallest feature map; raises UserError if images of `side` do not divide
        so far."""
        stride = self.patch * 2 ** (len(self.widths) - 1)
        if side % stride:
            raise UserError(
                f"images of side {side} do not fit a network of stride {stride} (patch {self.patch}, {len(self.widths)} "
                "levels): change its widths or patch, or resize the images"
            )
        return side // stride


class GeneratorConfig(ConvolutionalConfig, NetworkBase):
    """latent: numbers of noise that are used; `conditional` embeds the data set's labels where it
    has any."""

    name: Literal["generator"] = "generator"
    """the network's kind"""
    latent: int = Field(default=64, ge=1)
    """numbers of noise that are used"""
    conditional: bool = True
    """embed the labels of data that has any"""

    def build(self, channels: int, side: int, num_classes: int) -> Generator:
        return Generator(self, channels, side, num_classes if self.conditional else 0)


class AutoencoderConfig(ConvolutionalConfig, NetworkBase):
    """A generator with an encoder that mirrors it."""

    name: Literal["autoencoder"] = "autoencoder"
    """the network's kind"""
    latent: int = Field(default=32, ge=1)
    """numbers of the code"""
    conditional: bool = True
    """embed the labels of data that has any"""

    def build(self, channels: int, side: int, num_classes: int) -> Autoencoder:
        return Autoencoder(self, channels, side, num_classes if self.conditional else 0)


def _convolution(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    """He initialisation for the leaky ReLU, zero bias."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.kaiming_normal_(conv.weight, a=SLOPE)
    nn.init.zeros_(conv.bias)
    return conv


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.conv2 = _convolution(channels, channels), _convolution(channels, channels)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, SLOPE)), SLOPE))


class Decoder(nn.Module):
    """code [B, latent], embedding [B, E] or None -> image [B, C, S, S]."""

    def __init__(
        self, size: ConvolutionalConfig, latent: int, channels: int, side: int, num_classes: int
    ):
        super().__init__()
        self.widths, self.coarsest, self.patch = size.widths, size.coarsest(side), size.patch
        self.label = nn.Embedding(num_classes + 1, latent) if num_classes else None
        self.first = nn.Linear(
            latent * (2 if num_classes else 1), size.widths[-1] * self.coarsest**2
        )
        self.levels = nn.ModuleList()
        current = size.widths[-1]
        for width in reversed(size.widths):
            self.levels.append(
                nn.Sequential(_convolution(current, width, 1) if width != current else nn.Identity(),
                              *(_Residual(width) for _ in range(size.blocks)))
            )  # fmt: skip
            current = width
        self.last = _convolution(current, channels * size.patch**2)

    def forward(self, code: Tensor, label: Tensor | None) -> Tensor:
        if self.label is not None:
            code = torch.cat([code, self.label(label)], dim=1)
        h = self.first(code).view(len(code), self.widths[-1], self.coarsest, self.coarsest)
        for i, level in enumerate(self.levels):
            if i:
                h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            h = level(h)
        h = self.last(F.leaky_relu(h, SLOPE))
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h


class Encoder(nn.Module):
    """image [B, C, S, S], label [B] -> [B, outputs].

    projection: the label enters as an inner product of its embedding with the features (Miyato and
    Koyama 2018, eq. 4), for a critic; otherwise it is embedded beside them.
    """

    def __init__(
        self,
        size: ConvolutionalConfig,
        channels: int,
        side: int,
        num_classes: int,
        outputs: int,
        projection: bool = False,
    ):
        super().__init__()
        coarsest = size.coarsest(side)
        self.patch, self.projection, width = size.patch, projection, size.widths[-1]
        self.first = _convolution(channels * size.patch**2, size.widths[0])
        self.levels = nn.ModuleList()
        current = size.widths[0]
        for w in size.widths:
            self.levels.append(
                nn.Sequential(_convolution(current, w, 1) if w != current else nn.Identity(),
                              *(_Residual(w) for _ in range(size.blocks)))
            )  # fmt: skip
            current = w
        self.flat = nn.Linear(width * coarsest**2, 2 * width)
        self.label = nn.Embedding(num_classes + 1, 2 * width) if num_classes else None
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.first(F.pixel_unshuffle(image, self.patch) if self.patch > 1 else image)
        for i, level in enumerate(self.levels):
            if i:
                h = F.avg_pool2d(h, 2)
            h = level(h)
        h = F.leaky_relu(self.flat(F.leaky_relu(h, SLOPE).flatten(1)), SLOPE)
        if self.label is None:
            return self.head(h)
        if self.projection:
            return self.head(h) + (self.label(label) * h).sum(1, keepdim=True) / math.sqrt(
                h.shape[1]
            )
        return self.head(h + self.label(label))


def _labels(label: Tensor | None, count: int, null: int, device: torch.device) -> Tensor | None:
    """The labels a conditional network was given, the null label where it was given none."""
    if null and label is None:
        return torch.full((count,), null, device=device)
    if not null and label is not None:
        raise ValueError(
            "this network is unconditional: it was built with num_classes=0, so label must be None"
        )
    return label


class Generator(nn.Module):
    """`net(x, t, r, label) -> image` for noise x [B, C, S, S]: its first `latent` numbers are the
    code. t and r are not read: the network knows one time, t = 1 (`discrete_steps: 1` in its spec),
    where x is pure noise."""

    def __init__(self, size: GeneratorConfig, channels: int, side: int, num_classes: int):
        super().__init__()
        check_latent(size.latent, channels, side)
        self.latent, self.num_classes = size.latent, num_classes
        self.decoder = Decoder(size, size.latent, channels, side, num_classes)

    def forward(
        self, x: Tensor, t: Tensor, r: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        label = _labels(label, len(x), self.num_classes, x.device)
        return self.decoder(x.flatten(1)[:, : self.latent], label)


class Autoencoder(nn.Module):
    """A Generator with an encoder. `noise` is one parameter, the logarithm of the decoder's
    standard deviation.

    `net(x, t, r, label)` decodes the code in the noise x, as a Generator does. `net(image, t, r,
    label, noise=eps)` encodes the image and decodes mean + std * eps[:, :latent]; it returns (image
    [B, C, S, S], mean [B, latent], log variance [B, latent]). Both in one forward, so that wrappers
    for many processes see all that is trained.
    """

    def __init__(self, size: AutoencoderConfig, channels: int, side: int, num_classes: int):
        super().__init__()
        check_latent(size.latent, channels, side)
        self.latent, self.num_classes = size.latent, num_classes
        self.encoder = Encoder(size, channels, side, num_classes, 2 * size.latent)
        self.decoder = Decoder(size, size.latent, channels, side, num_classes)
        self.log_std = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        r: Tensor | None = None,
        label: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        label = _labels(label, len(x), self.num_classes, x.device)
        if noise is None:
            return self.decoder(x.flatten(1)[:, : self.latent], label)
        mean, log_variance = self.encoder(x, label).chunk(2, dim=1)
        code = mean + (0.5 * log_variance).exp() * noise.flatten(1)[:, : self.latent]
        return self.decoder(code, label), mean, log_variance


def check_latent(latent: int, channels: int, side: int) -> None:
    """Raises UserError if an image's worth of noise has fewer than `latent` numbers."""
    if not 1 <= latent <= channels * side**2:
        raise UserError(
            f"network.latent={latent}: the noise of a {channels}x{side}x{side} image has 1 to {channels * side**2}"
        )
