"""Points of the plane, in place of images: a data set that trains in seconds, and whose density is
known.

Each coordinate has mean 0 and variance 1, the scale that the paths and boundaries here expect. A
point is stored as float32 [2, 1, 1], an image of two channels and one pixel, so that all that
trains, samples and measures images works on points.
"""

from __future__ import annotations

import torch

from core.codec import CODECS
from core.data.dataset import ImageData
from core.data.densities import Checkerboard, Density, eight_gaussians
from core.errors import UserError

SIZES = {"train": 100_000, "test": 20_000}
SEEDS = {"train": 0, "test": 1}


def _data(name: str, density: Density, split: str, root: str | None, side: int | None) -> ImageData:
    """A fixed set, drawn once from the split's own seed."""
    for key, value in (("root", root), ("side", side)):
        if value is not None:
            raise UserError(f"data.{key}={value}: the points of {name} have none: remove it")
    generator = torch.Generator().manual_seed(SEEDS[split])
    points, labels = density.draw(SIZES[split], generator)
    images = points.float()[:, :, None, None]
    classes = density.num_classes
    codec = CODECS["identity"]
    return ImageData(name, split, images, labels, classes, codec=codec, density=density)


def checkerboard(split: str, root: str | None, side: int | None) -> ImageData:
    """100,000 and 20,000 points of `Checkerboard`, no classes."""
    return _data("checkerboard", Checkerboard(), split, root, side)


def gaussians(split: str, root: str | None, side: int | None) -> ImageData:
    """100,000 and 20,000 points of `eight_gaussians`, 8 classes."""
    return _data("gaussians", eight_gaussians(), split, root, side)
