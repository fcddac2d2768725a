"""The evaluator: (run, sampler, steps, seeds) -> one row of the curve, and the sweep that measures many, once each."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils.memory import find_executable_batch_size, should_reduce_batch_size
from torch import Tensor
from tqdm import tqdm

from core.counting import count_evals
from core.data import ImageData
from core.errors import UserError
from core.grids import make_grid
from core.method import DataConfig
from core.noise import Noise
from core.pictures import save_png, tile
from core.predictions import Denoised
from core.processes import gather_in_order, share_of, start_processes, sum_over
from core.runs import Run, load_run, sample_images
from core.samplers import Progress, make_sampler
from eval import kept_features
from eval.extractors import EXTRACTORS, ClassifierExtractor, Extractor, InceptionExtractor, check_reads, make_extractor
from eval.extrapolate import fid_infinity, sizes_for
from eval.machine import commit, device_words, peak_memory_bytes, reset_peak_memory
from eval.metrics import bootstrap_std, frechet_distance, kernel_distance, precision_recall, statistics
from eval.reference import Reference, balanced_choice, shared_reference
from eval.rows import append_row, drop_torn_line, identity, only_writer, read_rows
from eval.sweep_config import SweepConfig, SweepEntry


@dataclass(frozen=True)
class Task:
    """One point to measure. nfe: network evaluations an image, expected (what the row reports is counted)."""

    run: Run
    entry: SweepEntry
    sampler: str
    steps: int
    guidance_scale: float
    nfe: int

    @property
    def grid(self) -> str:
        return self.entry.grid or make_sampler(self.sampler).grid

    @property
    def words(self) -> str:
        guided = "" if self.guidance_scale == 1.0 else f" guidance {self.guidance_scale:g}"
        return f"{self.entry.method or self.run.method} {self.sampler}{guided} x{self.steps}"


class _Stub:
    """A denoiser without a network, to learn how often a sampler asks."""

    def __init__(self, path):
        self.path, self.calls = path, 0

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        self.calls += 1
        return Denoised(torch.zeros_like(x), x)


def expected_nfe(run: Run, sampler: str, grid: str | None, steps: int, guidance_scale: float) -> int:
    """Network evaluations an image, found by running the sampler on one pixel; for the estimate and the progress bar.

    Raises:
        UserError: a grid that this run does not have, or guidance without classes.
    """
    chosen = make_sampler(sampler)
    try:
        times = make_grid(grid or chosen.grid, run.model.path, steps, run.model.discrete_steps)
    except UserError as error:
        raise UserError(f"{run.folder} with {sampler}: {error}") from error
    if guidance_scale != 1.0 and not run.num_classes:
        raise UserError(f"{run.folder}: guidance_scale={guidance_scale} needs a class-conditional model; 1.0 is off")
    stub = _Stub(run.model.path)
    chosen.run(stub, torch.zeros(1, 1, 1, 1), times, Noise(0, torch.zeros(1, dtype=torch.int64)))
    return stub.calls * (1 if guidance_scale == 1.0 else 2)


def data_of(config: SweepConfig, run: Run) -> DataConfig:
    """The data a run is compared with: its own, or the sweep's where the run does not know.

    Raises:
        UserError: neither is known, or they differ.
    """
    if run.data is None and config.data is None:
        raise UserError(
            f"{run.folder} does not say what it was trained on ({run.channels}x{run.side}x{run.side} images): name the data to "
            "compare it with, in a config data: {name: cifar10}, on the command line --data cifar10"
        )
    if run.data is not None and config.data is not None and run.data != config.data:
        trained, given = run.data.name, config.data.name
        raise UserError(f"{run.folder} was trained on data {trained}, but the sweep's data is {given}: remove data")
    return run.data or config.data


def plan(config: SweepConfig, device: torch.device) -> list[Task]:
    """All points of the sweep, in the order of the config; everything that can be refused is refused here."""
    tasks = []
    for entry in config.entries:
        loaded: dict[Path, Run] = {}  # a run may keep another model for some numbers of steps
        for sampler in entry.samplers:
            for scale in entry.guidance_scales:
                for steps in entry.steps:
                    run = load_run(config.folder_of(entry), entry.weights, device, steps)
                    run = loaded.setdefault(run.weights_file, run)
                    nfe = expected_nfe(run, sampler, entry.grid, steps, scale)
                    tasks.append(Task(run, entry, sampler, steps, scale, nfe))
    if len(used := {data_of(config, task.run) for task in tasks}) > 1:
        raise UserError(f"the runs of one sweep share a data set, these have {sorted(data.name for data in used)}: split it")
    return tasks


def protocol(config: SweepConfig, extractor: Extractor, data: ImageData, task: Task | None) -> dict:
    """The part of a row that is known before anything is measured; task None: the floor."""
    run, entry = (task.run, task.entry) if task else (None, None)
    other = "test" if config.reference == "train" else "train"
    return {
        "dataset": data.name,
        "method": (entry.method or run.method) if task else "floor",
        "run": run.name if task else f"{data.name} {other}",
        "teacher": run.teacher if task else None,
        "sampler": task.sampler if task else None,
        "steps": task.steps if task else None,
        "nfe": None,
        "guidance_scale": task.guidance_scale if task else None,
        "metric": extractor.metric_name,
        "fid": None,
        "fid_std": None,
        "fid_error": config.error_bar(config.sets if task else 1, bool(run.num_classes if task else data.num_classes)),
        "fid_infinity": None,
        "kid": None,
        "precision": None,
        "recall": None,
        "n": config.n,
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "reference": f"{data.name} {config.reference}",
        "reference_sha256": data.sha256,
        "ema": run.ema if task else None,
        "seed": config.seed if task else None,
        "threshold": entry.threshold if task else None,
        "grid": task.grid if task else None,
        "seconds_per_image": None,
        "peak_memory_bytes": None,
        "device": None,
        "train_images": run.train_images if task else None,
        "train_evals": run.train_evals if task else None,
        "train_seconds": run.train_seconds if task else None,
        "config_sha256": run.config_sha256 if task else None,
        "weights_sha256": run.weights_sha256 if task else None,
        "commit": commit(),
        "class_histogram": None,
        "samples": None,
    }


def measure(
    features: Tensor, reference: Reference, sets: int, bootstrap: int, extrapolate: int = 0, strata: Tensor | None = None
) -> dict:
    """The metrics of features [sets * n, D]: means over the sets, and the standard deviation that the config asks for.

    strata: classes [sets * n] whose numbers were fixed beforehand, for the bootstrap.

    fid_infinity is of all the images together; None with extrapolate = 0.
    """
    parts = features.chunk(sets)
    values = [frechet_distance(statistics(part), reference.statistics) for part in parts]
    kid = precision = recall = None  # where the reference has no features
    if reference.features is not None:
        kid = sum(kernel_distance(part, reference.features, reference.kernel_sums) for part in parts) / sets
        shares = torch.tensor([precision_recall(part, reference.features) for part in parts], dtype=torch.float64)
        precision, recall = shares.mean(0).tolist()
    if sets > 1:
        std = float(torch.tensor(values, dtype=torch.float64).std())
    else:
        std = bootstrap_std(features, reference.statistics, bootstrap, strata=strata) if bootstrap else None
    return {
        "fid": sum(values) / sets,
        "fid_std": std,
        "fid_infinity": fid_infinity(features, reference.statistics, extrapolate) if extrapolate else None,
        "kid": kid,
        "precision": precision,
        "recall": recall,
    }


def class_histogram(features: Tensor, extractor: Extractor, data: ImageData) -> list[int] | None:
    """Images [num_classes] that the classifier counts to each class; None where it does not know the data's classes."""
    if not isinstance(extractor, ClassifierExtractor) or extractor.classifier.spec.dataset != data.name:
        return None
    return torch.bincount(extractor.logits_of(features).argmax(1), minlength=extractor.num_classes).tolist()


class _MemoryExhausted(Exception):
    """A batch of a single image did not fit into memory."""


class Sampled(NamedTuple):
    """What sampling one task gave one extractor: features [sets * n, D], the first images [K, C, H, W], and the row's keys that
    only sampling tells: counted NFE and seconds an image, the main process's peak of memory (eval/machine.py), the device."""

    features: Tensor
    images: Tensor
    measured: dict


class Sweep:
    """A sweep on one or several processes. Every process samples its share; the main one measures and writes."""

    def __init__(self, config: SweepConfig, state: PartialState):
        self.config, self.state = config, state
        self.device = torch.device(config.device) if config.device else state.device
        self.tasks = plan(config, self.device)
        source = data_of(config, self.tasks[0].run)
        self.data = source.load(config.reference)
        for run in {task.run.weights_file: task.run for task in self.tasks}.values():
            if (run.channels, run.side) != (self.data.channels, self.data.side):
                raise UserError(
                    f"{run.folder} makes {run.channels}x{run.side}x{run.side} images, but data '{self.data.name}' has "
                    f"{self.data.channels}x{self.data.side}x{self.data.side}"
                )
        self.floor_data = source.load("test" if config.reference == "train" else "train") if config.floor else None
        weights = config.extractor_weights
        self.extractors = [make_extractor(name, self.device, _weights_for(name, weights)) for name in config.extractors]
        for extractor in self.extractors:
            check_reads(extractor, self.data.channels, self.data.side, self.data.name)
            if config.extrapolate:
                sizes_for(config.n * config.sets, extractor.width, config.extrapolate)  # refuses what cannot be
        self.out = Path(config.out)
        self.features_folder = self.out.parent / "features"
        if config.compile:
            for network in {id(task.run): task.run.model.network for task in self.tasks}.values():
                # forward alone: hooks, which count evaluations, stay outside. One graph a batch size: they are few.
                network.forward = torch.compile(network.forward, dynamic=False)
        self.batch_size = config.batch_size  # falls where memory does not suffice
        self.done = {identity(row): row for row in read_rows(self.out)}
        self.references: dict[str, Reference] = {}
        state.wait_for_everyone()  # all have read the file before the main process changes it

    def missing(self, task: Task) -> list[Extractor]:
        """The extractors under which this task has no row yet."""
        return [e for e in self.extractors if identity(protocol(self.config, e, self.data, task)) not in self.done]

    def _file_of(self, task: Task, extractor: Extractor) -> Path:
        row = protocol(self.config, extractor, self.data, task)
        return kept_features.file_of(self.features_folder, row, self.config.n * self.config.sets)

    def _needs_sampling(self, task: Task) -> bool:
        return any(not self._file_of(task, extractor).is_file() for extractor in self.missing(task))

    def run(self) -> list[dict]:
        """Measures what is not in the curves file yet. Returns the sweep's rows, done before or now."""
        config, total = self.config, self.config.n * self.config.sets
        todo = [task for task in self.tasks if self.missing(task)]
        floors = [e for e in self.extractors if self.floor_data and identity(self._floor_protocol(e)) not in self.done]
        to_sample = [task for task in todo if self._needs_sampling(task)]
        cost = sum(task.nfe for task in to_sample) * total
        if self.state.is_main_process:
            drop_torn_line(self.out)
            points = f"{len(todo)} of {len(self.tasks)} points to measure"
            ready = f", {len(todo) - len(to_sample)} from kept features" if len(to_sample) < len(todo) else ""
            _say(f"{points}{ready}: {total} images each, {cost:,} network evaluations in all")
            for extractor in self.extractors:
                if config.n < 2 * extractor.width:
                    _say(f"warning: n = {config.n} images for {extractor.width} features: compare only numbers at the same n")
        for extractor in self.extractors:
            if extractor in floors or any(extractor in self.missing(task) for task in todo):
                self.references[extractor.name] = shared_reference(self.data, extractor, config.cache, self.state)
        if self.state.is_main_process:
            for extractor in floors:
                self._floor(extractor)
        quiet = not self.state.is_main_process
        if to_sample and not quiet:
            _say(f"this will take about {in_words(self._estimate(to_sample))} of sampling and feature extraction")
        with tqdm(total=cost, unit="eval", unit_scale=True, dynamic_ncols=True, smoothing=0.05, disable=quiet) as bar:
            reached = 0
            for task in todo:
                bar.set_description(task.words)
                self._point(task, bar)
                reached += task.nfe * total if task in to_sample else 0
                bar.update(reached - bar.n)  # what rounding over the processes left
        if todo and self.state.is_main_process:
            _say(f"wrote {self.out}")
        wanted = [protocol(config, e, self.data, t) for t in self.tasks for e in self.extractors]
        wanted += [self._floor_protocol(e) for e in self.extractors if self.floor_data]
        return [self.done[key] for key in dict.fromkeys(map(identity, wanted)) if key in self.done]

    def _floor_protocol(self, extractor: Extractor) -> dict:
        size = min(self.config.n, len(self.floor_data))
        row = protocol(self.config, extractor, self.data, None)
        return row | {"n": size, "weights_sha256": self.floor_data.sha256}

    def _floor(self, extractor: Extractor) -> None:
        """The distance between two sets of real images, the best that a sampler can be expected to reach at this n."""
        row = self._floor_protocol(extractor)
        chosen = balanced_choice(self.floor_data.labels, row["n"])
        features = extractor(self.floor_data.images[chosen])
        strata = self.floor_data.labels[chosen] if self.floor_data.num_classes else None
        found = measure(features, self.references[extractor.name], 1, self.config.bootstrap, strata=strata)
        self._write(row | found | {"class_histogram": class_histogram(features, extractor, self.data)})

    def _estimate(self, todo: list[Task]) -> float:
        """Seconds that sampling all of `todo` will take: one batch in one step of the first task, and its features, are timed
        and multiplied. Networks of other runs are taken to be as fast as the first's."""
        config, task = self.config, todo[0]
        total = config.n * config.sets
        indices = torch.arange(min(config.batch_size, share_of(total, self.state).numel()))
        evals = expected_nfe(task.run, task.sampler, task.entry.grid, 1, task.guidance_scale)

        def sample(count: int) -> tuple[Tensor, float]:
            start = time.perf_counter()
            given = (config.seed, task.guidance_scale, task.entry.threshold, task.entry.grid)
            images = sample_images(task.run, task.sampler, 1, indices[:count], *given)
            return images, time.perf_counter() - start

        sample(len(indices) if config.compile else 2)  # pays for set-up
        images, seconds = sample(len(indices))
        sampling = seconds / len(indices) / evals * sum(t.nfe for t in todo)
        extracting = 0.0
        for extractor in self.extractors:
            few = images[: extractor.batch_size]
            start = time.perf_counter()
            extractor(few)
            extracting += (time.perf_counter() - start) / len(few) * sum(extractor in self.missing(t) for t in todo)
        return (sampling + extracting) * total / self.state.num_processes

    def _point(self, task: Task, bar: tqdm) -> None:
        config, extractors = self.config, self.missing(task)
        if not extractors:  # the config lists it twice
            return
        found = {e.name: self._kept(task, e) for e in extractors}
        if rest := [e for e in extractors if found[e.name] is None]:
            found |= self._sample(task, rest, bar)
        for extractor in extractors:
            row, sampled = protocol(config, extractor, self.data, task), found[extractor.name]
            if self.state.is_main_process:
                classes = task.run.num_classes
                strata = torch.arange(len(sampled.features)) % classes if classes else None
                given = (self.references[extractor.name], config.sets, config.bootstrap, config.extrapolate, strata)
                row |= measure(sampled.features, *given) | sampled.measured
                row |= {"class_histogram": class_histogram(sampled.features, extractor, self.data)}
                row |= {"samples": self._keep(row, sampled.images[: config.keep_samples])}
                self._write(row)
            self.done[identity(row)] = row

    def _kept(self, task: Task, extractor: Extractor) -> Sampled | None:
        """What an earlier sweep kept of these samples, if it did; the same answer on every process."""
        kept = kept_features.kept(self._file_of(task, extractor))
        return Sampled(*kept) if kept else None

    def _sample(self, task: Task, extractors: list[Extractor], bar: tqdm) -> dict[str, Sampled]:
        """Samples sets * n images, each process its share, and gathers everyone's: by extractor."""
        config, run, total = self.config, task.run, self.config.n * self.config.sets
        warm = min(self.batch_size, share_of(total, self.state).numel()) if config.compile else 2
        given = (config.seed, task.guidance_scale)
        sample_images(run, task.sampler, 1, torch.arange(warm), *given)  # pays for set-up that is not the sampler's
        reset_peak_memory(self.device)
        begun = bar.n

        def share(batch_size: int) -> tuple[dict[str, Tensor], Tensor, float, float]:
            self.batch_size = batch_size
            bar.update(begun - bar.n)  # a try with larger batches may have gone before
            return self._sample_share(task, extractors, bar)

        try:
            features, first, forwards, seconds = self._fitting(share)
        except _MemoryExhausted as error:
            raise UserError(f"{run.folder} with {task.words}: memory does not suffice for a single image") from error
        forwards, seconds = sum_over([forwards, seconds], self.state)
        measured = {
            "nfe": forwards / total,
            "seconds_per_image": seconds / total,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "device": device_words(self.device) + ", compiled" * config.compile,
        }
        if -(-total // self.state.num_processes) < config.keep_samples:  # few images: the first ones lie on several processes
            first = gather_in_order(first, total, self.state)
        found = {}
        for extractor in extractors:
            whole = gather_in_order(features[extractor.name], total, self.state)
            found[extractor.name] = Sampled(whole, first[: config.keep_samples], measured)
            if config.keep_features and self.state.is_main_process:
                row = protocol(config, extractor, self.data, task)
                kept_features.keep(self._file_of(task, extractor), row, *found[extractor.name])
        return found

    def _fitting(self, share: Callable[[int], tuple]) -> tuple:
        """share(batch size), with batches that fit into memory. accelerate's helper comes in only when the first try fails,
        since it collects garbage before each try, 0.2 s a point."""
        try:
            return share(self.batch_size)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        return find_executable_batch_size(share, self._smaller_batches(), reduce_batch_size_fn=self._smaller_batches)()

    def _smaller_batches(self) -> int:
        """Half of the batch that did not fit into memory; smaller batches give the same samples."""
        if self.batch_size == 1:
            raise _MemoryExhausted
        self.batch_size //= 2
        _say(f"out of memory: going on with batches of {self.batch_size}")
        return self.batch_size

    def _sample_share(
        self, task: Task, extractors: list[Extractor], bar: tqdm
    ) -> tuple[dict[str, Tensor], Tensor, float, float]:
        """This process's share in batches: features by extractor, first images, network forwards, seconds of sampling."""
        config, run, entry = self.config, task.run, task.entry
        features: dict[str, list[Tensor]] = {e.name: [torch.empty(0, e.width)] for e in extractors}
        first = [torch.empty(0, run.channels, run.side, run.side, dtype=torch.uint8)]

        def after_step(p: Progress) -> None:
            if p.index == p.steps and not torch.isfinite(p.x).all():
                raise UserError(f"{run.folder} with {task.words} gives NaN or infinite images: its weights have diverged")
            bar.update(len(p.x) * task.nfe / p.steps * self.state.num_processes)

        given = (config.seed, task.guidance_scale, entry.threshold, entry.grid)
        seconds = 0.0
        with count_evals(run.model.network) as counter:
            for indices in share_of(config.n * config.sets, self.state).split(self.batch_size):
                start = time.perf_counter()
                images = sample_images(run, task.sampler, task.steps, indices, *given, callback=after_step)
                seconds += time.perf_counter() - start  # images are on the CPU, so the device has finished
                for extractor in extractors:
                    features[extractor.name].append(extractor(images))
                if sum(map(len, first)) < config.keep_samples:
                    first.append(images)
        return {name: torch.cat(parts) for name, parts in features.items()}, torch.cat(first), counter.forwards, seconds

    def _keep(self, row: dict, images: Tensor) -> str | None:
        """Stores the first images [K, C, H, W] as a strip; returns its path, relative to the curves file."""
        if not len(images):
            return None
        sampled = ("run", "weights_sha256", "sampler", "steps", "guidance_scale", "threshold", "grid", "seed")
        short = hashlib.sha256(repr([row[key] for key in sampled]).encode()).hexdigest()[:8]
        name = "-".join(str(row[key]) for key in ("method", "run", "sampler", "steps"))
        file = Path("samples") / ("".join(c if c.isalnum() or c in "-_+." else "_" for c in name) + f"-{short}.png")
        save_png(tile(images, columns=len(images), gap=0), self.out.parent / file)
        return str(file)

    def _write(self, row: dict) -> None:
        append_row(self.out, row)
        self.done[identity(row)] = row


def _weights_for(name: str, weights: str | None) -> str | None:
    return weights if issubclass(EXTRACTORS.get(name, Extractor), InceptionExtractor) else None


def in_words(seconds: float) -> str:
    """ "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_sweep(config: SweepConfig) -> list[dict]:
    """Measures every point of `config` that its curves file does not hold yet, and returns all its rows.

    Raises:
        UserError: before anything is written, for what can be known before; for NaN images when they appear.
    """
    state = start_processes(cpu=config.device == "cpu")
    sweep = Sweep(config, state)
    with only_writer(sweep.out) if state.is_main_process else nullcontext():
        rows = sweep.run()
        state.wait_for_everyone()
    return rows
