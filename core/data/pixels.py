"""One picture from a file: Pillow's image -> uint8 [side, side, C], by a stated rule per mode.

| mode | rule |
|---|---|
| 1, L, LA | grey, 8 bits as they are |
| P, PA, RGB, RGBA | colour, 8 bits as they are |
| CMYK, YCbCr, HSV, RGBX | converted to RGB by Pillow |
| LAB | converted to sRGB by LittleCMS |
| I;16 and its variants, and I where the file is of 16 bits | grey, by their own 16 bits (/ 257) |
| the same, where no value of the data set is above 4095 | grey, by the data set's own range |
| I | grey, by the data set's own range |
| F | grey, by [0, 1] where all values lie within, otherwise by the data set's own range |

The data set's own range is that from the least to the greatest value of all its files of the kind,
so that pictures keep their brightness relative to each other; where there is one value only, it
becomes black. Colour profiles are not applied.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

from core.errors import UserError

GREY = ("1", "L", "LA", "La", "I", "F")
SHORT, LONG, FLOAT = "16-bit integers", "32-bit integers", "floats"
TWELVE_BITS = 4095


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The picture in a file, with nothing read but its header.

    Raises: UserError: it is larger than Pillow opens. Whatever Pillow raises for a broken one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except Image.DecompressionBombError as error:
        width, height = _size(path)
        raise UserError(
            f"{path} has {width} x {height} pixels, and more than {2 * Image.MAX_IMAGE_PIXELS:,} "
            "are not opened: save a smaller copy in its place, or set data.skip_unreadable=true"
        ) from error
    with image:
        yield image


def _size(path: Path) -> tuple[int, int]:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            return image.size
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture as a viewer shows it, turned and mirrored as its EXIF data says; and whether
    those could be read. Where not, it is as it lies in the file."""
    image.load()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's, on EXIF data cut short
            return ImageOps.exif_transpose(image), True
    except Exception:  # of many kinds: EXIF data are a TIFF file of their own
        return image.copy(), False


class Span(NamedTuple):
    """kind: of a picture's values; low, high: the least and the greatest of them."""

    kind: str
    low: float
    high: float


def span(image: Image.Image, path: Path) -> Span | None:
    """The values of a picture with more than 8 bits; None for all others.

    Raises:
        UserError: they are not all finite.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        kind = SHORT  # Pillow scales PPM to 16 bits by the greatest value that the file declares
    elif image.mode in ("I", "F"):
        kind = LONG if image.mode == "I" else FLOAT
    else:
        return None
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise UserError(f"{path} holds NaN or infinite values: remove or replace it")
    return Span(kind, float(values.min()), float(values.max()))


class Scale(NamedTuple):
    """What becomes 0 and 255; own: whether that is the data set's own range."""

    low: float
    high: float
    own: bool


def scales(spans: list[Span]) -> dict[str, Scale]:
    """The scale of each kind of values, from those of all pictures."""
    found = {}
    for kind in (SHORT, LONG, FLOAT):
        of_kind = [s for s in spans if s.kind == kind]
        if not of_kind:
            continue
        low, high = min(s.low for s in of_kind), max(s.high for s in of_kind)
        if kind == SHORT and high > TWELVE_BITS:
            found[kind] = Scale(0, 65535, False)
        elif kind == FLOAT and low >= 0 and high <= 1:
            found[kind] = Scale(0, 1, False)
        else:
            found[kind] = Scale(low, high, True)
    return found


def _eight_bits(image: Image.Image, scale: Scale) -> Image.Image:
    """L, or LA where the file names one value as transparent."""
    values = np.asarray(image).astype(np.float64)
    share = (values - scale.low) / ((scale.high - scale.low) or 1)
    grey = Image.fromarray((255 * share).round().clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        seen = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(seen))
    return grey


@cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def _colours(image: Image.Image, scale: Scale | None) -> Image.Image:
    """RGB, or RGBA where there is transparency of whatever kind."""
    if scale is not None:
        image = _eight_bits(image, scale)
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _lab_to_srgb())
    clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    return image.convert("RGBA" if clear else "RGB")


@dataclass(frozen=True)
class Look:
    """How pictures become images of the data set.

    side: pixels. fit: what is done with pictures that are not square: "crop" (shorter side to
    `side`, centre kept), "pad" (longer side to `side`, centred on the background) or "stretch".
    background: RGB, under what is transparent and beside what is padded. keep: transparency as a
    fourth channel in place of the background."""

    side: int
    fit: str
    background: tuple[int, int, int]
    keep: bool

    def of(self, image: Image.Image, scale: Scale | None) -> tuple[np.ndarray, bool]:
        """An upright picture as uint8 [side, side, 3 or 4], and whether it is grey: its mode is,
        and so is the background wherever it shows.

        With `keep` what was padded is transparent, and what is fully transparent has the
        background's colour."""
        grey = image.mode in GREY or image.mode.startswith("I;16")
        image = _colours(image, scale)
        if self.keep:
            image = self._fitted(image.convert("RGBA"), (*self.background, 0))
            hidden = image.getchannel("A").point([255] + 255 * [0])
            image.paste((*self.background, 0), mask=hidden)
        else:
            if image.mode == "RGBA":
                below = Image.new("RGBA", image.size, (*self.background, 255))
                image = Image.alpha_composite(below, image).convert("RGB")
            image = self._fitted(image, self.background)
        pixels = np.asarray(image)
        return pixels, grey and bool((pixels[..., :3] == pixels[..., :1]).all())

    def _fitted(self, image: Image.Image, beside: tuple[int, ...]) -> Image.Image:
        side, lanczos = self.side, Image.Resampling.LANCZOS
        if self.fit == "stretch":
            return image.resize((side, side), lanczos)
        if self.fit == "pad":
            scale = side / max(image.size)
            width, height = (max(1, round(scale * s)) for s in image.size)
            canvas = Image.new(image.mode, (side, side), beside)
            small = image.resize((width, height), lanczos)
            canvas.paste(small, ((side - width) // 2, (side - height) // 2))
            return canvas
        scale = side / min(image.size)
        width, height = (max(side, round(scale * s)) for s in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        large = image.resize((width, height), lanczos)
        return large.crop((left, top, left + side, top + side))
