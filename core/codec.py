"""Codecs: samples as they are stored, and what a network sees of them. The owner of both edges.

Codecs without weights are named in `CODECS`. `Latents` is the codec of latent diffusion, with an
autoencoder inside.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from core.config import Strict
from core.errors import UserError


class Codec(Protocol):
    """From stored samples [B, C, S, S], images in uint8 or points in float32, to the network's
    float tensors and back.

    stored: their type. spacing: the distance of neighbouring stored values as the network sees
    them, None where values are continuous. spec: what says of the codec all but its weights.
    sha256: of its weights, None where it has none.
    """

    stored: torch.dtype
    spacing: float | None
    spec: CodecSpec
    sha256: str | None

    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor: ...

    def decode(self, x: Tensor) -> Tensor: ...


class Pixels:
    """The network sees the pixels: uint8 [0, 255] as float32 [-1, 1]."""

    stored, spec, sha256 = torch.uint8, "pixels", None
    spacing = 1 / 127.5

    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return images.to(dtype) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """Rounded, then clamped."""
        return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Identity:
    """The network sees points as they are: float32 [B, D, 1, 1], of variance about 1."""

    stored, spec, sha256 = torch.float32, "identity", None
    spacing = None

    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return images.to(dtype)

    def decode(self, x: Tensor) -> Tensor:
        return x.float()


CODECS: dict[str, Codec] = {"pixels": Pixels(), "identity": Identity()}


class LatentSpec(Strict):
    """What a model says of the latents that it lives in. The weights of the autoencoder lie in the
    folder of the run (core/autoencoders.py); `sha256` says which they are."""

    name: Literal["latents"] = "latents"
    autoencoder: str
    """its name, for people"""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """of its config and weights"""
    images: int = Field(ge=1, le=4096)
    """channels of the images that it encodes"""
    channels: int = Field(ge=1, le=4096)
    """channels of the latents"""
    factor: int = Field(ge=1, le=4096)
    """how many times smaller the side of the latents is"""
    scale: float = Field(gt=0, lt=1e30)
    """what latents are multiplied by to have variance 1"""
    shift: float = 0.0
    """what is taken off them before"""

    def words(self, channels: int, side: int) -> str:
        """What rows call it, for images [channels, side, side]."""
        shape = "x".join(map(str, self.shape(channels, side)))
        return f"latents {shape} of {self.autoencoder} ({self.sha256[:12]})"

    def shape(self, channels: int, side: int) -> tuple[int, ...]:
        """Of the latents of one image [channels, side, side]; raises UserError where the images do
        not fit the autoencoder."""
        if channels != self.images:
            raise UserError(
                f"the autoencoder '{self.autoencoder}' encodes images of {self.images} channels, "
                f"and these have {channels}: take one that was trained on such images"
            )
        if side % self.factor:
            raise UserError(
                f"the autoencoder '{self.autoencoder}' divides the side of images by "
                f"{self.factor}, and these have {side}: resize them, or take another one"
            )
        return (self.channels, side // self.factor, side // self.factor)


CodecSpec = Literal[tuple(CODECS)] | LatentSpec


def seen_shape(codec: CodecSpec, channels: int, side: int) -> tuple[int, ...]:
    """The shape of one sample as the network sees it, for images [channels, side, side].

    Raises:
        UserError: the images do not fit the codec.
    """
    latent = isinstance(codec, LatentSpec)
    return codec.shape(channels, side) if latent else (channels, side, side)


class Latents:
    """The network sees latents of variance 1 (Rombach et al. 2022, sec. 3.1 and app. G).

    Args:
        autoencoder: `moments(images) -> (mean, log variance)` and `decode(latents) -> images`, both
            as they are, not scaled, of images in [-1, 1]. It is moved to wherever a sample is.
    """

    stored, spacing = torch.uint8, None
    PART = 64  # images that are encoded or decoded at once: activations are large

    def __init__(self, spec: LatentSpec, autoencoder: nn.Module):
        self.spec, self.autoencoder = spec, autoencoder.eval().requires_grad_(False)
        self.pixels = CODECS["pixels"]

    @property
    def sha256(self) -> str:
        return self.spec.sha256

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, C, h, w] of the scaled latents of images in uint8."""
        autoencoder, means, stds = self.autoencoder.to(images.device), [], []
        for part in images.split(self.PART):
            mean, log_variance = autoencoder.moments(self.pixels.encode(part))
            means.append((mean - self.spec.shift) * self.spec.scale)
            stds.append((0.5 * log_variance).exp() * self.spec.scale)
        return torch.cat(means), torch.cat(stds)

    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The means."""
        return self.moments(images)[0].to(dtype)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        autoencoder = self.autoencoder.to(x.device)
        latents = x.float() / self.spec.scale + self.spec.shift
        parts = [self.pixels.decode(autoencoder.decode(part)) for part in latents.split(self.PART)]
        return torch.cat(parts)
