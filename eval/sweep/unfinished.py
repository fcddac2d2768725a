"""A point that takes hours, in parts: what an interrupted sweep had sampled of it is not sampled
again."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from core.files import read_tensors, write_tensors


class Part(NamedTuple):
    """Consecutive samples from global index `first` on: features [count, D] by extractor, the
    images that may be shown [K, C, H, W] (K <= count), and what they took: forwards of the network
    and seconds of sampling."""

    first: int
    features: dict[str, Tensor]
    images: Tensor
    forwards: int
    seconds: float

    @property
    def count(self) -> int:
        return len(next(iter(self.features.values())))


def joined(parts: list[Part]) -> Part:
    """Parts that follow each other, as one."""
    features = {
        name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features
    }
    images = torch.cat([part.images for part in parts])
    return Part(
        parts[0].first,
        features,
        images,
        sum(p.forwards for p in parts),
        sum(p.seconds for p in parts),
    )


class Unfinished:
    """The parts of one point on disk, in a folder of their own. Samples are addressed by index, so
    that a sweep of other batches or another number of processes goes on from them.

    Args:
        folder: where unfinished points lie.
        point: what decides the samples and their features.
        device: in words; parts made on another are left out, for the times of two devices have no
            sum.
    """

    def __init__(self, folder: Path, point: list, device: str):
        self.folder = folder / hashlib.sha256(repr(point).encode()).hexdigest()[:16]
        self.device = device

    def within(self, first: int, end: int) -> list[Part]:
        """The parts that lie in [first, end), in order, none over another. A damaged one is
        reported and left out."""
        found = []
        for file in sorted(self.folder.glob("*.safetensors")):
            part = self._read(file) if first <= int(file.stem) < end else None
            if part and first <= part.first and part.first + part.count <= end:
                found.append(part)
                first = part.first + part.count
        return found

    def add(self, part: Part) -> None:
        """Puts a part on disk, whole or not at all."""
        about = {
            "device": self.device,
            "forwards": str(part.forwards),
            "seconds": str(part.seconds),
        }
        write_tensors(
            self.folder / f"{part.first:012d}.safetensors",
            part.features | {"images": part.images},
            about,
        )

    def remove(self) -> None:
        """The point is finished: its parts go."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # not empty: another point's lie there; or there never were any
            self.folder.parent.rmdir()

    def _read(self, file: Path) -> Part | None:
        found = read_tensors(file, "its samples are made again")
        if found is None or found[1]["device"] != self.device:
            return None
        tensors, about = found
        images = tensors.pop("images")
        return Part(
            int(file.stem), tensors, images, int(about["forwards"]), float(about["seconds"])
        )
