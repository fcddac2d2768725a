"""Where images come from: `digits`, `fashion_mnist`, `cifar10` and `folder`, by name."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from core.config import Strict
from core.data.dataset import ImageData
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


DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


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
    folders = [Path(root)] if root else [DEBIAN_FASHION, Path("data/FashionMNIST/raw")]
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
        folder = folders[1]
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


SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def _eight_bits(image):
    """16-bit grey scaled to 8 bits, where Pillow's own conversion would clip it to white."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray(
        (np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
    )


def folder(split: str, root: str | None, side: int | None) -> ImageData:
    """Any folder of images; subfolders, if there are any, are the classes in alphabetical order.

    Each image is resized with Pillow (Lanczos) so that its shorter side is data.side, and cropped
    to the centre. Every tenth image, by name, is the test split. Kept as RGB unless every file is
    grey.
    """
    from PIL import Image, UnidentifiedImageError

    if root is None or side is None:
        raise UserError("data set 'folder' needs data.root=FOLDER and data.side=PIXELS")
    base = Path(root)
    files = (
        sorted(p for p in base.rglob("*") if p.suffix.lower() in SUFFIXES) if base.is_dir() else []
    )
    if not files:
        raise UserError(
            f"data.root={root} holds no images ({', '.join(sorted(SUFFIXES))}): check the path"
        )
    classes = sorted(
        {p.relative_to(base).parts[0] for p in files if len(p.relative_to(base).parts) > 1}
    )
    if classes and any(p.parent == base for p in files):
        raise UserError(
            f"data.root={root} has images both beside and inside subfolders: classes are subfolders, so move them"
        )
    images, grey = [], True
    for path in files:
        try:
            with Image.open(path) as image:
                grey &= image.mode in ("L", "1", "LA") or image.mode.startswith("I")
                image = _eight_bits(image).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{path} is not a readable image: remove or replace it") from error
        scale = side / min(image.size)
        size = [max(side, round(scale * s)) for s in image.size]
        image = image.resize(size, Image.Resampling.LANCZOS)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        images.append(np.asarray(image.crop((left, top, left + side, top + side))))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(
        [classes.index(p.relative_to(base).parts[0]) if classes else 0 for p in files]
    )
    test = torch.arange(len(files)) % 10 == 9
    keep = test if split == "test" else ~test
    name = base.resolve().name
    return ImageData(
        name,
        split,
        (pixels[:, :1] if grey else pixels)[keep],
        labels[keep],
        len(classes),
        flip=False,
    )


SOURCES: dict[str, Callable[[str, str | None, int | None], ImageData]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "folder": folder,
}


def load_data(
    name: str, split: str = "train", root: str | None = None, side: int | None = None
) -> ImageData:
    """The split ("train" or "test") of a data set.

    Raises:
        UserError: unknown name, or files that are missing or broken, with how to get them.
    """
    if name not in SOURCES:
        raise UserError(f"unknown data set '{name}'{nearest(name, SOURCES)}")
    if split not in ("train", "test"):
        raise UserError(f"unknown split '{split}': train or test")
    return SOURCES[name](split, os.path.expanduser(root) if root else None, side)


class DataConfig(Strict):
    """name: digits, fashion_mnist, cifar10 or folder; root: where its files are; side: for
    `folder`."""

    name: str
    root: str | None = None
    side: int | None = None

    def load(self, split: str = "train") -> ImageData:
        return load_data(self.name, split, self.root, self.side)

    def elsewhere(self) -> DataConfig:
        """The same data for another machine: without the folder it lies in here, unless that folder
        is its name."""
        return self if self.name == "folder" else self.model_copy(update={"root": None})
