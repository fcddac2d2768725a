"""Features of samples on disk, in parts: what an interrupted sweep has left of a point, and what a
finished one keeps on request, so that other metrics and error bars of it cost no sampling."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import FiniteFloat, ValidationError
from torch import Tensor

from core.config import Strict
from core.tensors import read_tensors, write_tensors
from eval.features.extractors import Extractor
from eval.text import file_name, short_hash

NAME = re.compile(r"(\d{9,18})-(\d{9,18})-")  # first and end of a part, then its extractors
KEPT, UNFINISHED = "features", "unfinished"  # folders beside the curves file


def identity(extractor: Extractor) -> str:
    """An extractor by name and weights."""
    return f"{extractor.name} {extractor.sha256}"


class _About(Strict):
    """What a part's file says besides its tensors."""

    first: int
    features: None
    images: None
    forwards: FiniteFloat
    seconds: FiniteFloat
    memory: int
    device: str


class Part(NamedTuple):
    """Consecutive samples of a point.

    first: global index of the first sample. features: [count, D] by the extractor's identity.
    images: of the first samples, uint8 [K, C, H, W], K <= count. forwards of the network, seconds
    of sampling, and the most memory in bytes, on `device`, in words.
    """

    first: int
    features: dict[str, Tensor]
    images: Tensor
    forwards: float
    seconds: float
    memory: int
    device: str

    @property
    def count(self) -> int:
        return len(next(iter(self.features.values())))

    @property
    def end(self) -> int:
        return self.first + self.count


def joined(parts: list[Part]) -> Part:
    """Parts that follow each other on one device, as one."""
    names = parts[0].features
    images = []
    for part in parts:
        images.append(part.images)
        if len(part.images) < part.count:  # what comes later does not follow these
            break
    return Part(
        parts[0].first,
        {name: torch.cat([part.features[name] for part in parts]) for name in names},
        torch.cat(images),
        sum(part.forwards for part in parts),
        sum(part.seconds for part in parts),
        max(part.memory for part in parts),
        parts[0].device,
    )


class Store:
    """The parts of one point on disk, in two folders of its own. Samples are addressed by index, so
    that a sweep of other batches or another number of processes goes on from them.

    Args:
        root: the folder of the curves file.
        samples: what decides the samples (Row.samples_key).
        words: of which the folder's name is made, for people.
    """

    def __init__(self, root: Path, samples: tuple, words: Iterable):
        name = f"{file_name(words)}-{short_hash(samples)}"
        self.folders = {kind: root / kind / name for kind in (KEPT, UNFINISHED)}

    def within(
        self, first: int, end: int, extractors: Iterable[Extractor], device: str | None = None
    ) -> list[Part]:
        """Parts in [first, end) with the features of all `extractors`, in order, none over another;
        with `device`, those that were made on it alone, for the times of two devices have no sum. A
        damaged part is reported and left out."""
        names, found = {identity(extractor) for extractor in extractors}, []
        for start, stop, file in self._files():
            if first <= start and stop <= end:
                part = _read(file, names)
                if part and part.first >= first and device in (None, part.device):
                    found.append(part)
                    first = part.end
        return found

    def whole(self, total: int, extractor: Extractor) -> Part | None:
        """The samples [0, total) of one device, if they are there to the last."""
        parts = self.within(0, total, [extractor])
        if sum(part.count for part in parts) < total or len({part.device for part in parts}) > 1:
            return None
        return joined(parts)

    def may_hold(self, total: int, extractor: Extractor) -> bool:
        """Whether `whole` is likely to find something: known from names, at no cost."""
        tag = short_hash(identity(extractor))
        spans = {(start, stop) for start, stop, file in self._files() if tag in file.stem}
        reached = 0
        for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
            reached = stop if start == reached and stop <= total else reached
        return reached == total

    def add(self, part: Part, kind: str) -> None:
        """Puts a part on disk, whole or not at all."""
        tags = "-".join(map(short_hash, sorted(part.features)))
        file = self.folders[kind] / f"{part.first:09d}-{part.end:09d}-{tags}.safetensors"
        about = part._asdict() | {"features": None, "images": None}
        tensors = part.features | {"images": part.images}
        write_tensors(file, tensors, {"about": json.dumps(about)})

    def forget(self) -> None:
        """The point is finished: what was unfinished of it goes."""
        folder = self.folders[UNFINISHED]
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty: another point's lie there; or there never were any
            folder.parent.rmdir()

    def _files(self) -> list[tuple[int, int, Path]]:
        """(first, end, file) of every part, in order, the longest first."""
        files = [f for folder in self.folders.values() for f in folder.glob("*.safetensors")]
        named = [(match, file) for file in files if (match := NAME.match(file.name))]
        spans = [(int(match[1]), int(match[2]), file) for match, file in named]
        return sorted(spans, key=lambda span: (span[0], -span[1], span[2]))


def _read(file: Path, names: set[str]) -> Part | None:
    if not all(short_hash(name) in file.stem for name in names):
        return None
    found = read_tensors(file, "its samples are made again", [*names, "images"])
    if found is None:
        return None
    tensors, written = found
    features = {name: tensors[name] for name in names}
    try:
        about = _About.model_validate_json(written.get("about", ""))
        part = Part(**about.model_dump() | {"features": features, "images": tensors["images"]})
        match = NAME.match(file.name)
        fits = match and (part.first, part.end) == (int(match[1]), int(match[2]))
    except (ValidationError, StopIteration, TypeError):
        fits = False
    if not fits:
        print(f"warning: {file} is damaged; its samples are made again", file=sys.stderr)
        return None
    return part
