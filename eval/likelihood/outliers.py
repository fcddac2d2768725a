"""Images that do not belong to the data, made of the test images and of another data set, and how
well a score tells them apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from core.data import load_data
from core.data.dataset import ImageData
from core.errors import UserError
from core.noise import Noise

NOISE = 20.0  # grey levels: the standard deviation of the noise of `noised`
STRANGERS = {"digits": "fashion_mnist"}  # the other data set, where it is not digits


def _noised(images: Tensor, rng: Noise) -> Tensor:
    z = rng.normal(tuple(images.shape[1:]), "noised")
    return (images + NOISE * z).round().clamp(0, 255).to(torch.uint8)


def _constant(images: Tensor, rng: Noise) -> Tensor:
    grey = rng.integers(256, "grey").view(-1, 1, 1, 1)
    return grey.expand_as(images).to(torch.uint8)


# Name -> images [N, C, S, S] uint8 and their addresses to as many images that are something else
CHANGES: dict[str, Callable[[Tensor, Noise], Tensor]] = {
    "mirrored": lambda images, rng: images.flip(-1),
    "upside-down": lambda images, rng: images.flip(-2),
    "rotated": lambda images, rng: images.rot90(1, (-2, -1)),
    "inverted": lambda images, rng: 255 - images,
    "noised": _noised,
    "constant": _constant,
}


def resized(images: Tensor, channels: int, side: int) -> Tensor:
    """uint8 [N, C, S, S] at another side, bilinearly and without aliasing, grey as colour and colour
    as grey where it has to be."""
    if images.shape[1] != channels:
        images = images.float().mean(1, keepdim=True).expand(-1, channels, -1, -1)
    smooth = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    return smooth.round().clamp(0, 255).to(torch.uint8)


def sets(data: ImageData, count: int, seed: int) -> dict[str, Tensor]:
    """Name -> at most `count` uint8 images of the data's shape, none of which belongs to them: the
    first images of `data` changed, and the first of another data set.

    Raises:
        UserError: the data are no images.
    """
    if data.codec.spec != "pixels":
        raise UserError(f"outliers of {data.name}: they are made for images, and these are points")
    images = data.images[:count]
    rng = Noise(seed, torch.arange(len(images)))
    found = {name: change(images, rng) for name, change in CHANGES.items()}
    other = STRANGERS.get(data.name, "digits")
    strangers = load_data(other, "test").images[:count]
    found[other] = resized(strangers, data.channels, data.side)
    return found


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The area under the receiver operating characteristic of a score [N] and [M] that is meant to
    be larger outside: the probability that an image from outside has the larger one."""
    from sklearn.metrics import roc_auc_score

    truth = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))])
    return float(roc_auc_score(truth.numpy(), torch.cat([inside, outside]).double().numpy()))
