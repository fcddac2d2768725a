"""Latent diffusion for tests: an autoencoder that changes nothing, and tiny real ones."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from core.codec import Latents, LatentSpec
from tests.helpers.tiny import train_tiny

AUTOENCODER = {"name": "autoencoder-kl", "latent": 2, "widths": [8, 8], "blocks": 1, "groups": 4,
               "attention": False}  # fmt: skip
IN_LATENTS = {"widths": [8], "blocks": 1, "attention": [], "patch": 1}


class Same(nn.Module):
    """The latents of an image are the image, without a doubt; `asked` counts what is encoded."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += len(images)
        return images, torch.full_like(images, -torch.inf)

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def identity(channels: int = 1) -> Latents:
    spec = LatentSpec(
        autoencoder="same", sha256="0" * 64, images=channels, channels=channels, factor=1, scale=1.0
    )
    return Latents(spec, Same())


def train_autoencoder(folder: Path, **options):
    """640 images of digits into latents of 2x4x4."""
    return train_tiny(folder, "autoencoder", own_network=AUTOENCODER, **options)


def train_in_latents(folder: Path, codec: Path, name: str = "ddpm", **options):
    """A tiny teacher or flow in the latents of the autoencoder in `codec`."""
    return train_tiny(folder, name, network=IN_LATENTS, data={"codec": str(codec)}, **options)
