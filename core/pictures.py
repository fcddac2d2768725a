"""Image grids as PNG, with Pillow alone, and the PNG files that a curve's rows name."""

from __future__ import annotations

import io
import os
import re
import stat
from pathlib import Path

import torch
from torch import Tensor

from core.data.densities import Density
from core.errors import UserError
from core.files import whole_file

SAMPLES = re.compile(r"samples/[\w+.-]+\.png")
DRAWABLE = (1, 3, 4)  # channels: grey, RGB, RGBA
PLANE = 2.3  # points are drawn in the window [-PLANE, PLANE]^2


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


def centres(side: int) -> Tensor:
    """[side * side, 2]: the middles of the pixels of a picture of the plane, line by line from the
    top left, the second coordinate upwards."""
    at = ((torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1) * PLANE
    return torch.stack([at.repeat(side), at.flip(0).repeat_interleave(side)], 1)


def scatter(points: Tensor, density: Density | None = None, side: int = 160) -> Tensor:
    """Points of the plane, float [N, 2, 1, 1], as one picture uint8 [3, side, side]: dark where they
    are many, with their exact density in yellow behind them where that is given. What lies outside
    of the window is not drawn."""
    ground = torch.zeros(side, side, dtype=torch.float64)
    if density is not None:
        ground = density.log_density(centres(side)).exp().view(side, side)
        ground = ground / ground.max()
    x, y = points.double().flatten(1)[:, :2].T
    column = ((x / PLANE + 1) / 2 * side).floor()
    line = ((1 - y / PLANE) / 2 * side).floor()
    seen = (column >= 0) & (column < side) & (line >= 0) & (line < side)
    index = (line * side + column)[seen].long()
    ink = torch.bincount(index, minlength=side**2).view(side, side).double()
    ink = 1 - torch.exp(-ink)
    yellow, blue = (torch.tensor(c, dtype=torch.float64) for c in ((255, 214, 102), (20, 40, 110)))
    paper = 255 + ground * (yellow.view(3, 1, 1) - 255)
    return (paper + ink * (blue.view(3, 1, 1) - paper)).round().to(torch.uint8)


def sheet(samples: Tensor, columns: int) -> tuple[Tensor, int]:
    """Samples as data are stored, as one picture, and how often each of its pixels is to be drawn:
    uint8 images as a grid, small ones enlarged, and points as a scatter."""
    if samples.is_floating_point():
        return scatter(samples), 2
    return tile(samples, columns), max(1, 64 // samples.shape[-1])


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
