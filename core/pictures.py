"""Image grids as PNG, with Pillow alone, and the PNG files that a curve's rows name."""

from __future__ import annotations

import io
import os
import re
import stat
from pathlib import Path

import torch
from torch import Tensor

from core.errors import UserError
from core.files import whole_file

SAMPLES = re.compile(r"samples/[\w+.-]+\.png")
DRAWABLE = (1, 3, 4)  # channels: grey, RGB, RGBA


def check_drawable(channels: int, instead: str = "") -> None:
    """Raises UserError, with what to give `instead`, where images of so many channels are no
    picture."""
    if channels not in DRAWABLE:
        raise UserError(
            f"images of {channels} channels cannot be written as pictures, only those of "
            f"{', '.join(map(str, DRAWABLE))}{f': give {instead}' * bool(instead)}"
        )


def samples_file(folder: Path, name: object) -> Path:
    """The file in `folder` that a row names as its samples, samples/NAME.png.

    Raises:
        UserError: another name, or a link or anything else that is no regular file stands there.
            It need not exist.
    """
    if not isinstance(name, str) or not SAMPLES.fullmatch(name):
        raise UserError(
            f"{folder}: samples {name!r} of a row are not called samples/NAME.png, NAME of letters, "
            "digits and -_+."
        )
    for place, wanted, kind in (
        (folder / "samples", stat.S_ISDIR, "folder"),
        (folder / name, stat.S_ISREG, "file"),
    ):
        if os.path.lexists(place) and not wanted(place.lstat().st_mode):
            raise UserError(f"{place} is no plain {kind}, but a link or something else")
    return folder / name


def read_samples(folder: Path, name: object) -> tuple[bytes, int, int]:
    """The PNG file that a row names as its samples, and the picture's width and height.

    Raises:
        UserError: see samples_file and read_png.
    """
    return read_png(samples_file(folder, name))


def read_png(file: Path) -> tuple[bytes, int, int]:
    """A PNG file, and the picture's width and height; raises UserError where it is not there, or no
    whole PNG."""
    from PIL import Image

    try:
        png = file.read_bytes()
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.load()
            return png, image.width, image.height
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} is damaged, or no PNG") from error


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
    """uint8 [C, H, W] (grey, RGB or RGBA) as PNG, each pixel `scale` pixels wide; raises UserError
    for other numbers of channels."""
    from PIL import Image

    check_drawable(image.shape[0])
    pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
    picture = Image.fromarray(pixels)
    if scale > 1:
        picture = picture.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
        )
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
