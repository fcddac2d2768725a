"""The features of real images, computed once for each (data, extractor) and kept under the hash of both."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.data import ImageData
from eval.extractors import Extractor
from eval.metrics import Statistics, statistics

CACHE = Path("runs/.cache/reference")
KEPT = 5000  # images whose features are kept for KID, precision and recall
VERSION = 1  # of what is stored; part of the key


class Reference(NamedTuple):
    """statistics: of all images of the split; features: float32 [min(N, 5000), D] of a fixed random choice of them;
    kernel_sums: what KID keeps of them from one row to the next."""

    statistics: Statistics
    features: Tensor
    size: int
    sha256: str  # of the data
    kernel_sums: dict | None = None


def choice(size: int, count: int) -> Tensor:
    """[min(size, count)] int64: a fixed random choice of images. Data sets may be sorted by class, so not the first ones."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:count]


def balanced_choice(labels: Tensor, count: int) -> Tensor:
    """int64 [count]: indices with classes taking turns, as they do among samples, in a fixed shuffled order within each class."""
    order = choice(len(labels), len(labels))
    shuffled = labels[order]
    rank = torch.zeros_like(shuffled)
    for c in shuffled.unique():
        rank[shuffled == c] = torch.arange(int((shuffled == c).sum()))
    return order[torch.argsort(rank, stable=True)][:count]


def cache_file(data: ImageData, extractor: Extractor, cache: Path) -> Path:
    """Where the entry for this data and this extractor lies: the name is a hash of both contents."""
    key = f"{VERSION} {data.sha256} {extractor.name} {extractor.sha256} {KEPT}"
    return cache / f"{data.name}-{data.split}-{extractor.name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + str(tuple(tensors[name].shape)).encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Tensor] | None:
    """The entry's tensors, None if there is no entry; one that fails its checksum is reported and counts as none."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            if (file.metadata() or {}).get("sha256") == _digest(tensors):
                return tensors
    except (SafetensorError, OSError):
        pass
    print(f"warning: {path} is damaged; computing it again", file=sys.stderr)
    return None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file(tensors, partial, metadata={"sha256": _digest(tensors)})
    os.replace(partial, path)


def reference_for(
    data: ImageData,
    extractor: Extractor,
    cache: str | Path = CACHE,
    extract: Callable[[Tensor], Tensor] | None = None,
) -> Reference:
    """The reference of one split, from the cache or computed.

    Args:
        extract: images -> features in place of extractor(images), for callers that share the work or show progress.
    """
    path = cache_file(data, extractor, Path(cache))
    tensors = _read(path)
    if tensors is None:
        features = (extract or extractor)(data.images)
        given = statistics(features)
        tensors = {
            "mean": torch.from_numpy(given.mean),
            "cov": torch.from_numpy(np.ascontiguousarray(given.cov)),
            "features": features[choice(len(data), KEPT)].contiguous(),
        }
        _write(path, tensors)
    given = Statistics(tensors["mean"].numpy(), tensors["cov"].numpy())
    return Reference(given, tensors["features"], len(data), data.sha256, {})
