"""The data set `folder`: any folder of images, its classes and its split."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ImageColor

from core.data.dataset import ImageData
from core.data.pixels import Look, opened, scales, upright
from core.data.tree import Notes, Picture, pictures_in, reading
from core.errors import UserError

SPLITS = {"train": "train", "test": "test", "val": "val", "validation": "val", "valid": "val"}


def natural(name: str) -> tuple:
    """A key to sort by in which class2 comes before class10."""
    parts = re.split(r"(\d+)", name)
    parts[1::2] = map(int, parts[1::2])
    return (parts, name)


class Item(NamedTuple):
    """A picture with its class; split: "train" or "test" where the folder says so itself."""

    picture: Picture
    label: int
    split: str | None


def _subfolders(pictures: list[Picture], depth: int, place: str) -> list[str]:
    """The names at `depth` of the folders that hold pictures, in natural order.

    Raises:
        UserError: pictures lie both beside and inside subfolders.
    """
    inside = {p.place[depth] for p in pictures if len(p.place) > depth + 1}
    if inside and any(len(p.place) == depth + 1 for p in pictures):
        raise UserError(
            f"{place} has images both beside and inside subfolders: classes are subfolders, so "
            "move them"
        )
    return sorted(inside, key=natural)


def _listed(names) -> str:
    names = list(names)
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def arrange(pictures: list[Picture], root: str, notes: Notes) -> tuple[list[Item], list[str]]:
    """The pictures with their classes and splits, and the names of the classes.

    Raises:
        UserError: the folder's own split is not complete, not clear, or mixed with other folders.
    """
    place = f"data.root={root}"
    top = _subfolders(pictures, 0, place)
    folders = {name: SPLITS[name.lower()] for name in top if name.lower() in SPLITS}
    if not folders:
        return [Item(p, top.index(p.place[0]) if top else 0, None) for p in pictures], top
    if others := [name for name in top if name not in folders]:
        raise UserError(
            f"{place} mixes splits ({_listed(folders)}) with other folders ({_listed(others)}): "
            "move the others away, or rename what is no split"
        )
    names = {split: name for name, split in folders.items()}
    if len(names) < len(folders):
        raise UserError(f"{place} has one split twice ({_listed(folders)}): keep one folder of it")
    if "train" not in names:
        raise UserError(f"{place} has {_listed(folders)} and no train: point to classes, or add it")
    test = names.get("test", names.get("val"))
    used = [names["train"], *([test] if test else [])]
    of = {name: [p for p in pictures if p.place[0] == name] for name in used}
    classes = {name: _subfolders(of[name], 1, f"{place}/{name}") for name in used}
    known = classes[names["train"]]
    for name in used[1:]:
        if unknown := [c for c in classes[name] if c not in known]:
            raise UserError(
                f"{place}/{name} has classes that {names['train']} has not ({_listed(unknown)})"
            )
        if known and not classes[name]:
            raise UserError(
                f"{place}/{names['train']} has classes ({_listed(known)}) and {name} has none: "
                "sort its images into the same subfolders, or move it away"
            )
    unused = f"; {names['val']} is not used" if "val" in names and test != names["val"] else ""
    words = f"test from {test}" if test else "test is every tenth image of it"
    notes.lines.append(f"train from {names['train']}, {words}{unused}")
    return [
        Item(
            p,
            known.index(p.place[1]) if known else 0,
            ("test" if name == test else "train") if test else None,
        )
        for name in used
        for p in of[name]
    ], known


def folder(
    split: str,
    root: str | None,
    side: int | None,
    fit: str = "crop",
    background: str = "white",
    alpha: str = "composite",
    skip_unreadable: bool = False,
) -> ImageData:
    """Any folder of images; subfolders, if there are any, are the classes in natural order.

    Everything that Pillow opens is read, links are followed, and what is hidden is left out. Where
    the only subfolders are train and test (or val), they are the split; otherwise every tenth
    image, by name in alphabetical order, is the test split. Kept as RGB unless every file is grey;
    RGBA with alpha="keep". How a picture becomes an image: core/data/pixels.py. The keys are
    explained at DataConfig, and for users in docs/your_own_images.md.

    Until classes came in natural order they came in alphabetical order: where the two differ
    (class10 before class2), labels are others than those that earlier versions gave, and so are
    the bits of sha256. So are those of pictures with EXIF orientation, transparency, 12 bits or
    floating point.

    Raises:
        UserError: there are no images, one cannot be read and skip_unreadable is not set, or the
            subfolders are neither classes nor splits.
    """
    if root is None or side is None:
        raise UserError("data set 'folder' needs data.root=FOLDER and data.side=PIXELS")
    base = Path(root)
    notes = Notes(base)
    items, classes = arrange(pictures_in(base, notes, skip_unreadable), root, notes)
    scale = scales([item.picture.span for item in items if item.picture.span])
    notes.lines += [
        f"{kind} are scaled by their own range, {s.low:g} to {s.high:g}"
        for kind, s in scale.items()
        if s.own
    ]
    look = Look(side, fit, ImageColor.getrgb(background), alpha == "keep")
    images, labels, grey, count = [], [], True, 0
    for picture, label, given in items:  # all, so that a broken one is found before training
        with reading(picture.path, notes, skip_unreadable), opened(picture.path) as image:
            image, understood = upright(image)
            pixels, is_grey = look.of(image, picture.span and scale[picture.span.kind])
            if not understood:
                notes.add(Notes.TURNED, picture.path)
            if split == (given or ("test" if count % 10 == 9 else "train")):
                images.append(pixels)
                labels.append(label)
            grey &= is_grey
            count += 1
    notes.say()
    if not count:
        raise UserError(f"data.root={root} holds no images that Pillow reads: check the path")
    channels = 4 if look.keep else 1 if grey else 3
    stacked = np.stack(images) if images else np.zeros((0, side, side, 4), np.uint8)
    return ImageData(
        base.resolve().name,
        split,
        torch.from_numpy(stacked[..., :channels]).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(labels, dtype=torch.int64),
        len(classes),
        class_names=tuple(classes),
    )
