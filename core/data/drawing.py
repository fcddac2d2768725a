"""Drawing emoji from a colour font of bitmaps, with Pillow and its shaping library raqm."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor
from tqdm import tqdm

from core.errors import UserError

SIZE = 109  # the one size of the bitmaps in Noto Color Emoji


def _open(font: Path) -> ImageFont.FreeTypeFont:
    if not features.check("raqm"):
        raise UserError(
            "emoji of several signs are drawn by Pillow's raqm, which this Pillow lacks: pip "
            "install --force-reinstall pillow (its wheels have it)"
        )
    try:
        # Of a path that it cannot read, Pillow takes a namesake among the system's fonts.
        data = io.BytesIO(font.read_bytes())
        return ImageFont.truetype(data, SIZE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise UserError(
            f"{font} is no colour font of bitmaps of size {SIZE} ({error}): take Noto Color "
            "Emoji's NotoColorEmoji.ttf (CBDT), as in fonts-noto-color-emoji"
        ) from error


def draw(texts: list[str], names: list[str], font: Path, side: int) -> Tensor:
    """uint8 [N, 3, side, side]: each text as one glyph, centred on a white square as wide as the
    font's widest glyph, and made smaller by Lanczos. Deterministic.

    names: of the texts, for errors.

    Raises:
        UserError: no such font, or it lacks one of the texts.
    """
    face = _open(font)
    boxes = [face.getbbox(text) for text in texts]
    widths = [box[2] - box[0] for box in boxes]
    whole = int(np.median(widths))
    images = np.empty((len(texts), side, side, 3), np.uint8)
    for i, text in enumerate(tqdm(texts, desc="drawing emoji", disable=None)):
        canvas = Image.new("RGB", (whole, whole), "white")
        height = boxes[i][3] - boxes[i][1]
        corner = ((whole - widths[i]) // 2 - boxes[i][0], (whole - height) // 2 - boxes[i][1])
        ImageDraw.Draw(canvas).text(corner, text, font=face, embedded_color=True)
        images[i] = np.asarray(canvas.resize((side, side), Image.Resampling.LANCZOS))
        # What a font lacks it shows as several glyphs beside each other, or as nothing.
        if widths[i] > 1.5 * whole or images[i].min() == 255:
            raise UserError(
                f"{font} cannot draw '{names[i]}': take a font at least as new as the list of emoji"
            )
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
