"""Picture files and the data set that a folder of them becomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from core.config import parse
from core.data import DataConfig, ImageData


def save(path: Path, pixels: np.ndarray | int | tuple[int, ...], **options) -> Path:
    """Pixels as a file in the format of its name, or in options["format"]; one value stands for
    8 x 8 of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(pixels, np.ndarray):
        value = np.array(pixels, np.uint8)
        pixels = np.broadcast_to(value, (8, 8, *value.shape)).copy()
    Image.fromarray(pixels).save(path, **options)
    return path


def read(root: Path, split: str = "train", side: int = 8, **keys) -> ImageData:
    """The data set of a folder, by way of the config."""
    values = {"name": "folder", "root": str(root), "side": side, **keys}
    return parse(DataConfig, values, "test").load(split)


def only(root: Path, side: int = 8, **keys) -> torch.Tensor:
    """The one image [C, side, side] of a folder."""
    data = read(root, side=side, **keys)
    assert len(data) == 1
    return data.images[0]
