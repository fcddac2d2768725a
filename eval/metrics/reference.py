"""The features of real images, computed once for each (data, extractor) and kept under the hash of
both.

What takes hours without a GPU (Inception on a whole training set) is kept in parts on the way, and
lies beside this file for the bundled data: mean and covariance, without the features that KID,
precision and recall compare with.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from core.data import ImageData
from core.errors import UserError
from core.processes import gather_in_order, share_of
from core.tensors import read_tensors, write_tensors
from eval.features.extractors import Extractor
from eval.metrics.distances import Statistics, statistics

CACHE = Path("runs/.cache/reference")
SHIPPED = Path(__file__).parent / "references"
PART = 2000  # images whose features are kept together while the rest is computed
LARGEST = 20e6  # bytes of a shipped reference
VERSION = 1  # of what is stored; part of the key


class Reference(NamedTuple):
    """statistics: of all images of the split; features: float32 [min(N, kept), D] of a fixed random
    choice of them, None where only the statistics are at hand; found: what metrics keep of them
    from one row to the next."""

    statistics: Statistics
    features: Tensor | None
    size: int
    sha256: str  # of the data
    found: dict | None = None


def choice(size: int, count: int) -> Tensor:
    """[min(size, count)] int64: a fixed random choice of images. Data sets may be sorted by class,
    so not the first ones."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:count]


def balanced_choice(labels: Tensor, count: int) -> Tensor:
    """int64 [count]: indices with classes taking turns, as they do among samples, in a fixed
    shuffled order within each class."""
    order = choice(len(labels), len(labels))
    shuffled = labels[order]
    rank = torch.zeros_like(shuffled)
    for c in shuffled.unique():
        rank[shuffled == c] = torch.arange(int((shuffled == c).sum()))
    return order[torch.argsort(rank, stable=True)][:count]


def cache_file(data: ImageData, extractor: Extractor, cache: Path) -> Path:
    """Where the entry for this data and this extractor lies: the name is a hash of both
    contents."""
    key = f"{VERSION} {data.sha256} {extractor.name} {extractor.sha256} {extractor.kept}"
    return (
        cache
        / f"{data.name}-{data.split}-{extractor.name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    )


def _read(path: Path, *names: str) -> dict[str, Tensor] | None:
    """The tensors of these names."""
    found = read_tensors(path, "computing it again", names)
    return found[0] if found else None


def ship(data: ImageData, extractor: Extractor, cache: str | Path, folder: Path) -> Path:
    """Writes mean and covariance (float32, the covariance's upper triangle) of a reference in the
    cache to `folder`.

    Raises:
        UserError: it has not been computed yet.
    """
    source = cache_file(data, extractor, Path(cache))
    tensors = _read(source, "mean", "cov")
    if tensors is None:
        raise UserError(
            f"{source} does not exist: measure something with this extractor first (python -m scripts.evaluate)"
        )
    D = len(tensors["mean"])
    upper = tensors["cov"][torch.triu_indices(D, D).unbind()]
    path = folder / source.name
    write_tensors(path, {"mean": tensors["mean"].float(), "cov_upper": upper.float()})
    return path


def _shipped(path: Path) -> Statistics | None:
    """Mean and covariance as `ship` wrote them; None if there is no such file."""
    tensors = _read(path, "mean", "cov_upper")
    if tensors is None:
        return None
    D = len(tensors["mean"])
    cov = torch.zeros(D, D, dtype=torch.float64)
    rows, columns = torch.triu_indices(D, D).unbind()
    cov[rows, columns] = cov[columns, rows] = tensors["cov_upper"].double()
    return Statistics(tensors["mean"].double().numpy(), cov.numpy())


def reference_for(
    data: ImageData,
    extractor: Extractor,
    cache: str | Path = CACHE,
    extract: Callable[[Tensor], Tensor] | None = None,
    writes: bool = True,
    skip: Callable[[int], None] | None = None,
) -> Reference:
    """The reference of one split: from the cache, from the repository, or computed.

    An interrupted computation goes on after its last 2,000 images.

    Args:
        extract: images -> features in place of extractor(images), for callers that share the work
            or show progress.
        writes: whether this process keeps what was computed; one of several does.
        skip: is told, before anything is computed, of how many images the features are there
            already.
    """
    path = cache_file(data, extractor, Path(cache))
    tensors = _read(path, "mean", "cov", "features")
    if tensors is None and (given := _shipped(SHIPPED / path.name)) is not None:
        return Reference(given, None, len(data), data.sha256)
    if tensors is None:
        parts = path.with_suffix(".parts")
        files = [parts / f"{first:08d}.safetensors" for first in range(0, len(data), PART)]
        ready = [
            _read(file, "features") for file in files
        ]  # before anything is written, so that all processes see the same
        found = []
        if any(ready) and writes:
            print(
                f"{extractor.name} reference: {sum(map(bool, ready))} of {len(files)} parts are there already",
                file=sys.stderr,
            )
        if skip:
            skip(sum(len(done["features"]) for done in ready if done))
        for file, done, images in zip(files, ready, data.images.split(PART), strict=True):
            found.append(done["features"] if done else (extract or extractor)(images))
            if writes and not done:
                write_tensors(file, {"features": found[-1]})
        features = torch.cat(found)
        given = statistics(features)
        tensors = {
            "mean": torch.from_numpy(given.mean),
            "cov": torch.from_numpy(np.ascontiguousarray(given.cov)),
            "features": features[choice(len(data), extractor.kept)],
        }
        if writes:
            write_tensors(path, tensors)
            shutil.rmtree(parts, ignore_errors=True)
    given = Statistics(tensors["mean"].numpy(), tensors["cov"].numpy())
    return Reference(given, tensors["features"], len(data), data.sha256, {})


@contextmanager
def shared_extraction(
    extractor: Extractor, total: int, words: str, state: PartialState
) -> Iterator[tuple[Callable, tqdm]]:
    """An extraction that several processes share, each with its part of the images, and its
    progress bar over `total` images.

    Yields: (images uint8 [N, C, H, W] -> float32 [N, D], the same on every process; the bar).
    """
    with tqdm(
        total=total,
        desc=words,
        unit="img",
        dynamic_ncols=True,
        disable=not state.is_main_process,
        delay=1,
    ) as bar:

        def extract(images: Tensor) -> Tensor:
            parts = [torch.empty(0, extractor.width)]
            for index in share_of(len(images), state).split(extractor.batch_size):
                parts.append(extractor(images[index]))
                bar.update(min(len(index) * state.num_processes, total - bar.n))
            return gather_in_order(torch.cat(parts), len(images), state)

        yield extract, bar


def shared_reference(
    data: ImageData, extractor: Extractor, cache: str | Path, state: PartialState
) -> Reference:
    """`reference_for` on several processes, each with its share of the images, and with a progress
    bar. Of two commands that want the same reference at a time one computes it, and the other waits
    for it."""
    with (
        _alone(cache_file(data, extractor, Path(cache))) if state.is_main_process else nullcontext()
    ):
        state.wait_for_everyone()  # what there is, all see alike
        with shared_extraction(extractor, len(data), f"{extractor.name} reference", state) as (
            extract,
            bar,
        ):

            def skip(count: int) -> None:
                bar.n = bar.initial = count  # so that the time left counts what is left

            found = reference_for(data, extractor, cache, extract, state.is_main_process, skip)
        state.wait_for_everyone()
    return found


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While the block runs, no other process is in it for the same entry, unless that is there
    already or in the repository."""
    if path.is_file() or (SHIPPED / path.name).is_file():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process computes {path}: waiting for it", file=sys.stderr, flush=True)
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()
