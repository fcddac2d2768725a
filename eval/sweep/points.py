"""Sampling for a sweep: a point's images, each process its share, in batches that fit into memory;
and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from accelerate import PartialState
from accelerate.utils.memory import find_executable_batch_size, should_reduce_batch_size
from torch import Tensor
from tqdm import tqdm

from core.counting import count_evals
from core.errors import UserError
from core.processes import gather_in_order, share_of, sum_over
from core.sampling.sample import expected_nfe, sample_images
from core.sampling.solvers import Progress
from core.setting import Setting
from eval.features.extractors import Extractor
from eval.sweep.config import SweepConfig
from eval.sweep.machine import device_words, peak_memory_bytes, reset_peak_memory
from eval.sweep.plan import Point
from eval.sweep.store import UNFINISHED, Part, Store, identity, joined

PART_SECONDS = 60  # of work, after which it is put on disk, so that an interruption costs no more


class _MemoryExhausted(Exception):
    """A batch of a single image did not fit into memory."""


def _images(point: Point, setting: Setting, indices: Tensor, callback=None) -> Tensor:
    """`sample_images` of the point's model; its errors name the run."""
    try:
        return sample_images(point.run.model, setting, indices, point.seed, callback=callback)
    except UserError as error:
        raise UserError(f"{point.run.folder}: {error}") from error


class PointSampler:
    """Samples the points of one sweep, on one or several processes, and extracts their features. It
    knows what memory allows: a batch size that did not fit is not tried again.

    Raises:
        UserError: from `estimate` and `sample`: not even a single image fits into memory, or images
            are NaN.
    """

    def __init__(
        self, config: SweepConfig, points: list[Point], state: PartialState, device: torch.device
    ):
        self.config, self.state, self.device = config, state, device
        self.share = share_of(config.total, state)
        self.batch_size = config.batch_size  # falls where memory does not suffice
        self.device_label = device_words(device) + ", compiled" * config.compile
        if config.compile:
            for network in {id(point.run): point.run.model.network for point in points}.values():
                # forward alone: hooks, which count evaluations, stay outside. One graph per batch
                # size: they are few. Frozen: weights are constants, which a processor's
                # convolutions want in a layout of their own.
                options = {"freezing": True} if device.type == "cpu" else None
                network.forward = torch.compile(network.forward, dynamic=False, options=options)

    def estimate(self, todo: list[tuple[Point, list[Extractor], Store]]) -> float:
        """Seconds that sampling `todo` for its extractors will take: one batch in one step of the
        first point, and its features, are timed and multiplied. Networks of other runs are taken to
        be as fast as the first's."""
        config, point = self.config, todo[0][0]
        once = point.setting.model_copy(update={"steps": 1})
        evals = expected_nfe(point.run.model, once)

        def timed(batch_size: int) -> tuple[Tensor, float]:
            self.batch_size = batch_size
            self._warm_up(point)
            indices = torch.arange(min(batch_size, len(self.share)))
            start = time.perf_counter()
            images = _images(point, once, indices)
            return images, time.perf_counter() - start

        images, seconds = self._fitting(timed, point)
        left = [1 - self._sampled_before(*task[1:]) / config.total for task in todo]
        evals_left = sum(p.nfe * share for (p, *_), share in zip(todo, left, strict=True))
        sampling, extracting = seconds / len(images) / evals * evals_left, 0.0
        wanted = [extractor for _, extractors, _ in todo for extractor in extractors]
        for extractor in dict.fromkeys(wanted):
            few = images[: extractor.batch_size]
            start = time.perf_counter()
            extractor(few)
            extracting += (time.perf_counter() - start) / len(few) * wanted.count(extractor)
        return (sampling + extracting) * config.total / self.state.num_processes

    def sample(self, point: Point, extractors: list[Extractor], store: Store, bar: tqdm) -> Part:
        """All samples of the point with their features, each process its share, gathered on every
        process. `bar` counts evaluations."""
        config, total = self.config, self.config.total
        if self.state.is_main_process and (before := self._sampled_before(extractors, store)):
            print(
                f"{point.label}: {before} of {total} images are there already",
                file=sys.stderr,
                flush=True,
            )
            _skip(bar, before * point.nfe)
        begun = bar.n

        def share(batch_size: int) -> Part:
            self.batch_size = batch_size
            self._warm_up(point)
            reset_peak_memory(self.device)
            bar.update(begun - bar.n)  # a try with larger batches may have gone before
            return self._sample_share(point, extractors, store, bar)

        mine = self._fitting(share, point)
        forwards, seconds = sum_over([mine.forwards, mine.seconds], self.state)
        images = mine.images
        if -(-total // self.state.num_processes) < config.keep_samples:
            images = gather_in_order(images, total, self.state)  # the first lie on several
        features = {
            name: gather_in_order(part, total, self.state) for name, part in mine.features.items()
        }
        return Part(
            0, features, images[: config.keep_samples], forwards, seconds, mine.memory, mine.device
        )

    def _sampled_before(self, extractors: list[Extractor], store: Store) -> int:
        """How many samples of the point an interrupted sweep has left."""
        found = store.within(0, self.config.total, extractors, self.device_label)
        return sum(part.count for part in found)

    def _warm_up(self, point: Point) -> None:
        """Pays for set-up that is not the sampler's; with compile for the graphs of both sizes of
        batches."""
        share = len(self.share)
        sizes = (
            {min(self.batch_size, share), share % self.batch_size} if self.config.compile else {2}
        )
        once = point.setting.model_copy(update={"steps": 1})
        for size in sizes - {0}:
            _images(point, once, torch.arange(size))

    def _fitting(self, share: Callable[[int], tuple], point: Point) -> tuple:
        """share(batch size), with batches that fit into memory. accelerate's helper comes in only
        when the first try fails, since it collects garbage ahead of each try, 0.2 s per point.

        Raises:
            UserError: not even a single image fits.
        """
        try:
            return share(self.batch_size)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        try:
            return find_executable_batch_size(
                share, self._smaller_batches(), reduce_batch_size_fn=self._smaller_batches
            )()
        except _MemoryExhausted as error:
            raise UserError(
                f"{point.run.folder} with {point.setting.label()}: memory does not suffice for a "
                "single image"
            ) from error

    def _smaller_batches(self) -> int:
        """Half of the batch that did not fit into memory; smaller batches give the same samples."""
        if self.batch_size == 1:
            raise _MemoryExhausted
        self.batch_size //= 2
        print(
            f"out of memory: going on with batches of {self.batch_size}",
            file=sys.stderr,
            flush=True,
        )
        return self.batch_size

    def _sample_share(
        self, point: Point, extractors: list[Extractor], store: Store, bar: tqdm
    ) -> Part:
        """This process's share. What an interrupted sweep has left of it is taken from disk."""
        first, end = (int(self.share[0]), int(self.share[-1]) + 1) if len(self.share) else (0, 0)
        parts = [self._nothing(point, extractors, first)]
        for part in store.within(first, end, extractors, self.device_label):
            parts += self._stretch(point, extractors, first, part.first, store, bar)
            parts.append(part)
            first = part.end
        parts += self._stretch(point, extractors, first, end, store, bar)
        whole = joined(parts)
        return whole._replace(memory=max(whole.memory, peak_memory_bytes(self.device)))

    def _nothing(self, point: Point, extractors: list[Extractor], first: int) -> Part:
        spec, stored = point.run.spec, point.run.model.codec.stored
        images = torch.empty(0, spec.channels, spec.side, spec.side, dtype=stored)
        features = {identity(e): torch.empty(0, e.width) for e in extractors}
        return Part(first, features, images, 0, 0.0, 0, self.device_label)

    def _stretch(
        self,
        point: Point,
        extractors: list[Extractor],
        first: int,
        end: int,
        store: Store,
        bar: tqdm,
    ) -> list[Part]:
        """Samples the indices [first, end) in batches. After each PART_SECONDS what there is goes
        on disk."""
        parts, fresh, begun = [], [], time.perf_counter()
        for start in range(first, end, self.batch_size):
            indices = torch.arange(start, min(start + self.batch_size, end))
            fresh.append(self._batch(point, extractors, indices, bar))
            if time.perf_counter() - begun >= PART_SECONDS:
                parts.append(joined(fresh))
                store.add(parts[-1], UNFINISHED)
                fresh, begun = [], time.perf_counter()
        return parts + fresh

    def _batch(self, point: Point, extractors: list[Extractor], indices: Tensor, bar: tqdm) -> Part:
        config = self.config

        def after_step(p: Progress) -> None:
            bar.update(len(p.x) * point.nfe / p.steps * self.state.num_processes)

        with count_evals(point.run.model.network) as counter:
            start = time.perf_counter()
            images = _images(point, point.setting, indices, after_step)
            # images are on the CPU, so the device has finished
            seconds = time.perf_counter() - start
        return Part(
            int(indices[0]),
            {identity(extractor): extractor(images) for extractor in extractors},
            images[indices < config.keep_samples],
            counter.forwards,
            seconds,
            peak_memory_bytes(self.device),
            self.device_label,
        )


def _skip(bar: tqdm, evals: float) -> None:
    """Moves the bar over work that was done before, which its speed and the time left shall not
    count."""
    bar.n += evals
    bar.initial += evals
    bar.last_print_n += evals
