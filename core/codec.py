"""Codecs: samples as they are stored, and what a network sees of them. The owner of both edges."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """From stored samples [B, C, S, S], images in uint8 or points in float32, to the network's float
    tensors and back. stored: their type; spacing: the distance of neighbouring stored values as the
    network sees them, None where values are continuous."""

    stored: torch.dtype
    spacing: float | None

    def shape(self, channels: int, side: int) -> tuple[int, ...]:
        """The shape of one sample as the network sees it, for images [channels, side, side]."""

    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor: ...

    def decode(self, x: Tensor) -> Tensor: ...


class Pixels:
    """The network sees the pixels: uint8 [0, 255] as float32 [-1, 1]."""

    stored = torch.uint8
    spacing = 1 / 127.5

    def shape(self, channels: int, side: int) -> tuple[int, ...]:
        return (channels, side, side)

    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return images.to(dtype) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """Rounded, then clamped."""
        return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Identity:
    """The network sees points as they are: float32 [B, D, 1, 1], of variance about 1."""

    stored = torch.float32
    spacing = None

    def shape(self, channels: int, side: int) -> tuple[int, ...]:
        return (channels, side, side)

    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return images.to(dtype)

    def decode(self, x: Tensor) -> Tensor:
        return x.float()


CODECS: dict[str, Codec] = {"pixels": Pixels(), "identity": Identity()}
