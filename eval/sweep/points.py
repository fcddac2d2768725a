"""Sampling for a sweep: a point's images, each process its share, in batches that fit into memory;
and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils.memory import find_executable_batch_size, should_reduce_batch_size
from torch import Tensor
from tqdm import tqdm

from core.counting import count_evals
from core.errors import UserError
from core.processes import gather_in_order, share_of, sum_over
from core.runs import sample_images
from core.sampling.solvers import Progress
from eval.features.extractors import Extractor
from eval.sweep.config import SweepConfig
from eval.sweep.machine import device_words, peak_memory_bytes, reset_peak_memory
from eval.sweep.plan import Task, expected_nfe
from eval.sweep.unfinished import Part, Unfinished, joined

PART_SECONDS = 60  # of work, after which it is put on disk, so that an interruption costs no more


class _MemoryExhausted(Exception):
    """A batch of a single image did not fit into memory."""


class Sampled(NamedTuple):
    """What sampling one task gave one extractor: features [sets * n, D], the first images [K, C, H,
    W], and the row's keys that only sampling tells: counted NFE and seconds an image, the main
    process's peak of memory (eval/sweep/machine.py), the device."""

    features: Tensor
    images: Tensor
    measured: dict


class PointSampler:
    """Samples the points of one sweep, on one or several processes, and extracts their features. It
    knows what memory allows: a batch size that did not fit is not tried again.

    Raises:
        UserError: from `estimate` and `sample`: not even a single image fits into memory, or images
            are NaN.
    """

    def __init__(
        self, config: SweepConfig, tasks: list[Task], state: PartialState, device: torch.device
    ):
        self.config, self.state, self.device = config, state, device
        self.total = config.n * config.sets
        self.batch_size = config.batch_size  # falls where memory does not suffice
        if config.compile:
            for network in {id(task.run): task.run.model.network for task in tasks}.values():
                # forward alone: hooks, which count evaluations, stay outside. One graph a batch
                # size: they are few. Frozen: weights are constants, which a processor's
                # convolutions want in a layout of their own.
                options = {"freezing": True} if device.type == "cpu" else None
                network.forward = torch.compile(network.forward, dynamic=False, options=options)

    def estimate(self, todo: list[tuple[Task, list[Extractor]]]) -> float:
        """Seconds that sampling `todo` for its extractors will take: one batch in one step of the
        first task, and its features, are timed and multiplied. Networks of other runs are taken to
        be as fast as the first's."""
        config, task = self.config, todo[0][0]
        evals = expected_nfe(task.run, task.sampler, task.entry.grid, 1, task.guidance_scale)

        def timed(batch_size: int) -> tuple[Tensor, float]:
            self.batch_size = batch_size
            self._warm_up(task)
            indices = torch.arange(min(batch_size, share_of(self.total, self.state).numel()))
            start = time.perf_counter()
            given = (config.seed, task.guidance_scale, task.entry.threshold, task.entry.grid)
            images = sample_images(task.run, task.sampler, 1, indices, *given)
            return images, time.perf_counter() - start

        images, seconds = self._fitting(timed, task)
        left = [1 - self._sampled_before(t, extractors) / self.total for t, extractors in todo]
        sampling = (
            seconds
            / len(images)
            / evals
            * sum(t.nfe * share for (t, _), share in zip(todo, left, strict=True))
        )
        extracting = 0.0
        wanted = [extractor for _, extractors in todo for extractor in extractors]
        for extractor in dict.fromkeys(wanted):
            few = images[: extractor.batch_size]
            start = time.perf_counter()
            extractor(few)
            extracting += (time.perf_counter() - start) / len(few) * wanted.count(extractor)
        return (sampling + extracting) * self.total / self.state.num_processes

    def sample(self, task: Task, extractors: list[Extractor], bar: tqdm) -> dict[str, Sampled]:
        """Samples sets * n images, each process its share, and gathers everyone's: by extractor.
        `bar` counts evaluations."""
        config, total = self.config, self.total
        if self.state.is_main_process and (before := self._sampled_before(task, extractors)):
            print(
                f"{task.words}: {before} of {total} images are there already",
                file=sys.stderr,
                flush=True,
            )
            _skip(bar, before * task.nfe)
        begun = bar.n

        def share(batch_size: int) -> tuple[dict[str, Tensor], Tensor, float, float]:
            self.batch_size = batch_size
            self._warm_up(task)
            reset_peak_memory(self.device)
            bar.update(begun - bar.n)  # a try with larger batches may have gone before
            return self._sample_share(task, extractors, bar)

        features, first, forwards, seconds = self._fitting(share, task)
        forwards, seconds = sum_over([forwards, seconds], self.state)
        measured = {
            "nfe": forwards / total,
            "seconds_per_image": seconds / total,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "device": self._device_words(),
        }
        if (
            -(-total // self.state.num_processes) < config.keep_samples
        ):  # few images: the first ones lie on several processes
            first = gather_in_order(first, total, self.state)
        whole = {e.name: gather_in_order(features[e.name], total, self.state) for e in extractors}
        return {
            name: Sampled(gathered, first[: config.keep_samples], measured)
            for name, gathered in whole.items()
        }

    def forget(self, task: Task, extractors: list[Extractor]) -> None:
        """Removes what was put on disk on the way to `sample`'s result: it has a safer place
        now."""
        self._unfinished(task, extractors).remove()

    def _device_words(self) -> str:
        return device_words(self.device) + ", compiled" * self.config.compile

    def _unfinished(self, task: Task, extractors: list[Extractor]) -> Unfinished:
        point = [
            task.run.weights_sha256,
            task.sampler,
            task.steps,
            task.guidance_scale,
            task.entry.threshold,
            task.grid,
        ]
        point += [
            self.config.seed,
            self.config.keep_samples,
            *sorted((e.name, e.sha256) for e in extractors),
        ]
        return Unfinished(Path(self.config.out).parent / "unfinished", point, self._device_words())

    def _sampled_before(self, task: Task, extractors: list[Extractor]) -> int:
        """How many samples of the point an interrupted sweep has left."""
        return sum(part.count for part in self._unfinished(task, extractors).within(0, self.total))

    def _warm_up(self, task: Task) -> None:
        """Pays for set-up that is not the sampler's; with compile for the graphs of both sizes of
        batches."""
        share = share_of(self.total, self.state).numel()
        sizes = (
            {min(self.batch_size, share), share % self.batch_size} if self.config.compile else {2}
        )
        for size in sizes - {0}:
            sample_images(
                task.run, task.sampler, 1, torch.arange(size), self.config.seed, task.guidance_scale
            )

    def _fitting(self, share: Callable[[int], tuple], task: Task) -> tuple:
        """share(batch size), with batches that fit into memory. accelerate's helper comes in only
        when the first try fails, since it collects garbage before each try, 0.2 s a point.

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
                f"{task.run.folder} with {task.words}: memory does not suffice for a single image"
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
        self, task: Task, extractors: list[Extractor], bar: tqdm
    ) -> tuple[dict[str, Tensor], Tensor, float, float]:
        """This process's share: features by extractor, first images, network forwards, seconds of
        sampling. What an interrupted sweep has left of it is taken from disk."""
        share, unfinished = share_of(self.total, self.state), self._unfinished(task, extractors)
        first, end = (int(share[0]), int(share[-1]) + 1) if len(share) else (0, 0)
        parts = []
        for part in unfinished.within(first, end):
            parts += [*self._stretch(task, extractors, first, part.first, bar, unfinished), part]
            first = part.first + part.count
        parts += self._stretch(task, extractors, first, end, bar, unfinished)
        nothing = torch.empty(0, task.run.channels, task.run.side, task.run.side, dtype=torch.uint8)
        features = {
            e.name: torch.cat([torch.empty(0, e.width), *(p.features[e.name] for p in parts)])
            for e in extractors
        }
        images = torch.cat([nothing, *(part.images for part in parts)])
        return (
            features,
            images,
            sum(part.forwards for part in parts),
            sum(part.seconds for part in parts),
        )

    def _stretch(
        self,
        task: Task,
        extractors: list[Extractor],
        first: int,
        end: int,
        bar: tqdm,
        unfinished: Unfinished,
    ) -> list[Part]:
        """Samples the indices [first, end) in batches. After each PART_SECONDS what there is goes
        on disk."""
        parts, fresh, begun = [], [], time.perf_counter()
        for start in range(first, end, self.batch_size):
            fresh.append(
                self._batch(
                    task, extractors, torch.arange(start, min(start + self.batch_size, end)), bar
                )
            )
            if time.perf_counter() - begun >= PART_SECONDS:
                parts.append(joined(fresh))
                unfinished.add(parts[-1])
                fresh, begun = [], time.perf_counter()
        return parts + fresh

    def _batch(self, task: Task, extractors: list[Extractor], indices: Tensor, bar: tqdm) -> Part:
        config, run, entry = self.config, task.run, task.entry

        def after_step(p: Progress) -> None:
            if p.index == p.steps and not torch.isfinite(p.x).all():
                raise UserError(
                    f"{run.folder} with {task.words} gives NaN or infinite images: its weights have diverged"
                )
            bar.update(len(p.x) * task.nfe / p.steps * self.state.num_processes)

        given = (config.seed, task.guidance_scale, entry.threshold, entry.grid)
        with count_evals(run.model.network) as counter:
            start = time.perf_counter()
            images = sample_images(
                run, task.sampler, task.steps, indices, *given, callback=after_step
            )
            seconds = (
                time.perf_counter() - start
            )  # images are on the CPU, so the device has finished
        features = {extractor.name: extractor(images) for extractor in extractors}
        return Part(
            int(indices[0]),
            features,
            images[indices < config.keep_samples],
            counter.forwards,
            seconds,
        )


def _skip(bar: tqdm, evals: float) -> None:
    """Moves the bar over work that was done before, which its speed and the time left shall not
    count."""
    bar.n += evals
    bar.initial += evals
    bar.last_print_n += evals
