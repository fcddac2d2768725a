"""Image grids as PNG, with Pillow alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from core.files import whole_file


def tile(images: Tensor, columns: int, gap: int = 1) -> Tensor:
    """uint8 [N, C, H, W] -> one uint8 image [C, rows (H + gap) - gap, columns (W + gap) - gap],
    white between."""
    N, C, H, W = images.shape
    rows = -(-N // columns)
    canvas = torch.full(
        (C, rows * (H + gap) - gap, columns * (W + gap) - gap), 255, dtype=torch.uint8
    )
    for i, image in enumerate(images):
        y, x = (i // columns) * (H + gap), (i % columns) * (W + gap)
        canvas[:, y : y + H, x : x + W] = image
    return canvas


def save_png(image: Tensor, path: Path, scale: int = 1) -> None:
    """uint8 [C, H, W] (grey or RGB) as PNG, each pixel `scale` pixels wide."""
    from PIL import Image

    pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
    picture = Image.fromarray(pixels)
    if scale > 1:
        picture = picture.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
        )
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
