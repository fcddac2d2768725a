"""Differentiable augmentation of what a critic sees (DiffAugment, Zhao et al. 2020, arXiv
2006.10738)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from core.noise import Noise

Augmentation = Literal["color", "translation", "cutout"]
SHIFT = 1 / 8  # of the side, in each direction
HOLE = 1 / 2  # side of the square that is cut out, of the image's


def augmented(x: Tensor, kinds: tuple[Augmentation, ...], rng: Noise, stream: str) -> Tensor:
    """Images [B, C, S, S] in [-1, 1], each changed by random numbers of its own (sec. 3.2 and the
    authors' code): `color` adds to the brightness and scales saturation and contrast, `translation`
    moves by up to an eighth of the side, `cutout` blanks a square of half the side. What comes in
    from outside is 0, grey, as there.

    A critic is shown nothing else, real or made, so that it cannot learn single images by heart;
    and since the generator's gradient goes through the same changes, they do not leak into what it
    makes. Points, of side 1, are left as they are by all but `color`.
    """
    for kind in kinds:
        u = rng.uniform(f"{stream}-{kind}", count=3).to(x)
        x = CHANGES[kind](x, *(column.view(-1, 1, 1, 1) for column in u.unbind(1)))
    return x


def _color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + 2 * saturation * (x - grey)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (x - mean)


def _places(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [1, 1, S, 1] and columns [1, 1, 1, S]."""
    places = torch.arange(x.shape[-1], device=x.device)
    return places.view(1, 1, -1, 1), places.view(1, 1, 1, -1)


def _translation(x: Tensor, down: Tensor, right: Tensor, _: Tensor) -> Tensor:
    most = int(x.shape[-1] * SHIFT + 0.5)
    rows, columns = _places(x)
    # Of the image with a margin, so that nothing is out of range
    rows = rows + (down * (2 * most + 1)).long()
    columns = columns + (right * (2 * most + 1)).long()
    batch = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
    channels = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
    return F.pad(x, [most] * 4)[batch, channels, rows, columns]


def _cutout(x: Tensor, down: Tensor, right: Tensor, _: Tensor) -> Tensor:
    side = x.shape[-1]
    hole = int(side * HOLE)
    rows, columns = _places(x)
    # Its corner is such that the centre lies anywhere in the image
    top = (down * (side + (hole + 1) % 2)).long() - hole // 2
    left = (right * (side + (hole + 1) % 2)).long() - hole // 2
    inside = (rows >= top) & (rows < top + hole) & (columns >= left) & (columns < left + hole)
    return x.masked_fill(inside, 0.0)


CHANGES = {"color": _color, "translation": _translation, "cutout": _cutout}
