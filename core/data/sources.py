"""Where images and points come from, by name: `digits`, `fashion_mnist`, `cifar10`, `folder`,
`emoji`, `checkerboard` and `gaussians`."""

from __future__ import annotations

import gzip
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import ImageColor
from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from core.config import Strict
from core.data.dataset import ImageData
from core.data.emoji import emoji
from core.data.folder import folder
from core.data.points import checkerboard, gaussians
from core.errors import UserError, nearest


def digits(split: str, root: str | None, side: int | None) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, 10 classes. Every fourth image is the test
    split (449 and 1,348)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "data set 'digits' comes with scikit-learn: pip install scikit-learn"
        ) from error
    bunch = load_digits()
    test = np.arange(len(bunch.images)) % 4 == 3
    keep = test if split == "test" else ~test
    images = np.round(bunch.images[keep] * (255 / 16)).astype(np.uint8)[:, None]
    return ImageData(
        "digits", split, torch.from_numpy(images), torch.from_numpy(bunch.target[keep]).long(), 10
    )


# Where files are looked for, and where downloads put them, which is the last one
FILES = {
    "fashion_mnist": [Path("/usr/share/datasets/fashion-mnist"), Path("data/FashionMNIST/raw")],
    "cifar10": [Path("data/cifar-10-batches-py")],
}


def _read_idx(path: Path) -> np.ndarray:
    """The IDX format of MNIST, gzipped: 2 zero bytes, type 8 = uint8, number of dimensions,
    dimensions, data."""
    try:
        raw = gzip.decompress(path.read_bytes())
        dims = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(dims).copy()
    except (OSError, EOFError, ValueError, struct.error, IndexError, gzip.zlib.error) as error:
        raise UserError(
            f"{path} is not a complete gzipped IDX file ({error}): fetch it again"
        ) from error


def fashion_mnist(split: str, root: str | None, side: int | None) -> ImageData:
    """Fashion-MNIST, 28x28 grey, 60,000 + 10,000: from data.root, else the Debian package, else
    torchvision's download."""
    prefix = "t10k" if split == "test" else "train"
    names = [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]
    folders = [Path(root)] if root else FILES["fashion_mnist"]
    folder = next((f for f in folders if all((f / n).is_file() for n in names)), None)
    if folder is None and root:
        raise UserError(
            f"data.root={root} holds no {names[0]} and {names[1]}: put Fashion-MNIST's four idx.gz files there"
        )
    if folder is None:
        try:
            from torchvision.datasets import FashionMNIST

            FashionMNIST("data", train=True, download=True)
        except Exception as error:
            raise UserError(
                "Fashion-MNIST was not found and could not be downloaded "
                f"({type(error).__name__}): apt-get install dataset-fashion-mnist, or set data.root to a folder with its idx.gz files"
            ) from error
        folder = folders[-1]
    images, labels = (_read_idx(folder / n) for n in names)
    if len(images) != len(labels):
        raise UserError(
            f"{folder}: {names[0]} holds {len(images)} images, {names[1]} {len(labels)} labels: fetch both again"
        )
    return ImageData(
        "fashion_mnist",
        split,
        torch.from_numpy(images)[:, None],
        torch.from_numpy(labels).long(),
        10,
        flip=False,
    )


def cifar10(split: str, root: str | None, side: int | None) -> ImageData:
    """CIFAR-10 in torchvision's python format (cifar-10-batches-py), 32x32 RGB, 50,000 + 10,000,
    flipped in training."""
    try:
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"data set 'cifar10' is read by torchvision, which does not import here: {error}"
        ) from error
    folder = root or "data"
    try:
        data = CIFAR10(folder, train=split != "test", download=False)
    except RuntimeError:
        try:
            data = CIFAR10(folder, train=split != "test", download=True)
        except Exception as error:
            raise UserError(
                f"CIFAR-10 was not found in {folder}/cifar-10-batches-py and could not be downloaded "
                f"({type(error).__name__}): put cifar-10-python.tar.gz's content there, or set data.root to where it is"
            ) from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageData("cifar10", split, images, torch.tensor(data.targets), 10, flip=True)


SOURCES: dict[str, Callable[..., ImageData]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "folder": folder,
    "emoji": emoji,
    "checkerboard": checkerboard,
    "gaussians": gaussians,
}


def files_of(name: str) -> dict[str, Path]:
    """The files of a data set by where a download would put them; none for what comes with a
    library or is computed.

    Raises:
        UserError: unknown name, or files that are missing; `folder`, whose files are anywhere.
    """
    if name not in SOURCES:
        raise UserError(f"unknown data set '{name}'{nearest(name, SOURCES)}")
    if name == "folder":
        raise UserError("data set 'folder' has its files anywhere: name their folder")
    places = FILES.get(name, [])
    folder = next((place for place in places if place.is_dir()), None)
    if places and folder is None:
        raise UserError(f"the files of {name} are not in {' or '.join(map(str, places))}")
    found = sorted(path for path in folder.iterdir() if path.is_file()) if folder else []
    return {(places[-1] / path.name).as_posix(): path for path in found}


def load_data(
    name: str,
    split: str = "train",
    root: str | None = None,
    side: int | None = None,
    **keys: str | bool,
) -> ImageData:
    """The split ("train" or "test") of a data set. keys: the others of DataConfig, for `folder`.

    Raises:
        UserError: unknown name, or files that are missing or broken, with how to get them.
    """
    if name not in SOURCES:
        raise UserError(f"unknown data set '{name}'{nearest(name, SOURCES)}")
    if split not in ("train", "test"):
        raise UserError(f"unknown split '{split}': train or test")
    return SOURCES[name](split, os.path.expanduser(root) if root else None, side, **keys)


class DataConfig(Strict):
    """The data set; keys from `fit` on are for `folder`, but for `codec`."""

    FOLDER: ClassVar[tuple[str, ...]] = ("fit", "background", "alpha", "skip_unreadable")
    LATER = (*FOLDER, "codec")

    name: str
    """digits, fashion_mnist, cifar10, emoji or folder; checkerboard or gaussians, of points"""
    root: str | None = None
    """where its files are"""
    side: int | None = Field(None, ge=2, le=4096)
    """pixels of an image's side, of folder (any) and emoji (32 or 64)"""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """pictures that are not square: keep the centre, pad with the background, or stretch"""
    background: str = "white"
    """a colour's name or "#rrggbb", behind transparency and around padded pictures"""
    alpha: Literal["composite", "keep"] = "composite"
    """transparency: put on the background, or kept as a fourth channel"""
    skip_unreadable: bool = False
    """count broken files and leave them out; otherwise the first one is an error"""
    codec: str | None = Field(None, min_length=1)
    """folder of an autoencoder in whose latents is trained, a run's or one in diffusers' format;
    null: on pixels, or in the teacher's latents"""

    @field_validator("background", mode="before")
    @classmethod
    def _colour(cls, colour: object) -> object:
        named = isinstance(colour, str) and colour.lower() in ImageColor.colormap
        if not named and not re.fullmatch("#[0-9a-fA-F]{6}", str(colour)):
            raise ValueError("a colour is a name such as white, or '#rrggbb' in quotes")
        return colour

    @model_validator(mode="after")
    def _of_folder(self) -> DataConfig:
        if self.name != "folder" and (given := self.of_folder()):
            raise ValueError(f"{min(given)} is a key for the data set folder, not {self.name}")
        return self

    def of_folder(self) -> dict:
        """The keys that only `folder` has, where they are not at their defaults."""
        default = type(self).model_fields
        return {k: v for k in self.FOLDER if (v := getattr(self, k)) != default[k].default}

    def load(self, split: str = "train") -> ImageData:
        return load_data(self.name, split, self.root, self.side, **self.of_folder())

    def elsewhere(self) -> DataConfig:
        """The same data for another machine: without the folder it lies in here, unless that folder
        is its name, and without that of its autoencoder, which models have with them."""
        root = self.root if self.name == "folder" else None
        return self.model_copy(update={"root": root, "codec": None})
