"""The evaluator: (run, sampler, steps, seeds) -> one row of the curve, and the sweep that measures many, once each."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from core.counting import count_evals
from core.data import ImageData
from core.errors import UserError
from core.grids import make_grid
from core.noise import Noise
from core.pictures import save_png, tile
from core.predictions import Denoised
from core.runs import Run, load_run, sample_images
from core.samplers import Progress, make_sampler
from eval.extrapolate import fid_infinity, sizes_for
from eval.extractors import INCEPTION, ClassifierExtractor, Extractor, check_reads, make_extractor
from eval.machine import commit, device_words, peak_memory_bytes, reset_peak_memory
from eval.metrics import bootstrap_std, frechet_distance, kernel_distance, precision_recall, statistics
from core.processes import gather_in_order, share_of, start_processes, sum_over
from eval.reference import Reference, balanced_choice, reference_for
from eval.rows import append_row, drop_torn_line, identity, read_rows
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
    if len(used := {task.run.data for task in tasks}) > 1:
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
        "fid_error": config.error_bar,
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


def measure(features: Tensor, reference: Reference, sets: int, bootstrap: int, extrapolate: int = 0) -> dict:
    """The metrics of features [sets * n, D]: means over the sets, and the standard deviation that the config asks for.

    fid_infinity is of all the images together; None with extrapolate = 0.
    """
    parts = features.chunk(sets)
    values = [frechet_distance(statistics(part), reference.statistics) for part in parts]
    kids = [kernel_distance(part, reference.features) for part in parts]
    shares = torch.tensor([precision_recall(part, reference.features) for part in parts], dtype=torch.float64)
    if sets > 1:
        std = float(torch.tensor(values, dtype=torch.float64).std())
    else:
        std = bootstrap_std(features, reference.statistics, bootstrap) if bootstrap else None
    precision, recall = shares.mean(0).tolist()
    return {
        "fid": sum(values) / sets,
        "fid_std": std,
        "fid_infinity": fid_infinity(features, reference.statistics, extrapolate) if extrapolate else None,
        "kid": sum(kids) / sets,
        "precision": precision,
        "recall": recall,
    }


def class_histogram(features: Tensor, extractor: Extractor, data: ImageData) -> list[int] | None:
    """Images [num_classes] that the classifier counts to each class; None where it does not know the data's classes."""
    if not isinstance(extractor, ClassifierExtractor) or extractor.classifier.spec.dataset != data.name:
        return None
    return torch.bincount(extractor.logits_of(features).argmax(1), minlength=extractor.num_classes).tolist()


@dataclass
class Sampled:
    """What sampling one task gave: features [sets * n, D] by extractor, first images, counted NFE and seconds an image, and
    the main process's peak of memory in bytes (see eval/machine.py)."""

    features: dict[str, Tensor]
    kept: Tensor
    nfe: float
    seconds: float
    peak: int


class Sweep:
    """A sweep on one or several processes. Every process samples its share; the main one measures and writes."""

    def __init__(self, config: SweepConfig, state: PartialState):
        self.config, self.state = config, state
        self.device = torch.device(config.device) if config.device else state.device
        self.tasks = plan(config, self.device)
        source = self.tasks[0].run.data
        self.data = source.load(config.reference)
        self.floor_data = source.load("test" if config.reference == "train" else "train") if config.floor else None
        weights = config.extractor_weights
        self.extractors = [make_extractor(name, self.device, _weights_for(name, weights)) for name in config.extractors]
        for extractor in self.extractors:
            check_reads(extractor, self.data.channels, self.data.side, self.data.name)
            if config.extrapolate:
                sizes_for(config.n * config.sets, extractor.width, config.extrapolate)  # refuses what cannot be
        self.out = Path(config.out)
        self.done = {identity(row): row for row in read_rows(self.out)}
        self.references: dict[str, Reference] = {}
        state.wait_for_everyone()  # all have read the file before the main process changes it

    def missing(self, task: Task) -> list[Extractor]:
        """The extractors under which this task has no row yet."""
        return [e for e in self.extractors if identity(protocol(self.config, e, self.data, task)) not in self.done]

    def run(self) -> list[dict]:
        """Measures what is not in the curves file yet. Returns the sweep's rows, done before or now."""
        config, total = self.config, self.config.n * self.config.sets
        todo = [task for task in self.tasks if self.missing(task)]
        floors = [e for e in self.extractors if self.floor_data and identity(self._floor_protocol(e)) not in self.done]
        cost = sum(task.nfe for task in todo) * total
        if self.state.is_main_process:
            drop_torn_line(self.out)
            points = f"{len(todo)} of {len(self.tasks)} points to measure"
            _say(f"{points}: {total} images each, {cost:,} network evaluations in all")
            for extractor in self.extractors:
                if config.n < 2 * extractor.width:
                    _say(f"warning: n = {config.n} images for {extractor.width} features: compare only numbers at the same n")
        for extractor in self.extractors:
            if extractor in floors or any(extractor in self.missing(task) for task in todo):
                self.references[extractor.name] = self._reference(extractor)
        if self.state.is_main_process:
            for extractor in floors:
                self._floor(extractor)
        quiet = not self.state.is_main_process
        if todo and not quiet:
            _say(f"this will take about {in_words(self._estimate(todo))} of sampling and feature extraction")
        with tqdm(total=cost, unit="eval", unit_scale=True, dynamic_ncols=True, smoothing=0.05, disable=quiet) as bar:
            reached = 0
            for task in todo:
                bar.set_description(task.words)
                self._point(task, bar)
                reached += task.nfe * total
                bar.update(reached - bar.n)  # what rounding over the processes left
        if todo and self.state.is_main_process:
            _say(f"wrote {self.out}")
        wanted = [protocol(config, e, self.data, t) for t in self.tasks for e in self.extractors]
        wanted += [self._floor_protocol(e) for e in self.extractors if self.floor_data]
        return [self.done[key] for key in dict.fromkeys(map(identity, wanted)) if key in self.done]

    def _reference(self, extractor: Extractor) -> Reference:
        """The reference, from the cache or computed by all processes together."""

        def extract(images: Tensor) -> Tensor:
            mine = share_of(len(images), self.state)
            quiet = not self.state.is_main_process
            words = f"{extractor.name} reference"
            with tqdm(total=len(mine), desc=words, unit="img", dynamic_ncols=True, disable=quiet) as bar:
                parts = [torch.empty(0, extractor.width)]
                for index in mine.split(extractor.batch_size):
                    parts.append(extractor(images[index]))
                    bar.update(len(index))
            # Whoever is here found no entry, and none is written before all have arrived at this line.
            return gather_in_order(torch.cat(parts), len(images), self.state)

        return reference_for(self.data, extractor, self.config.cache, extract)

    def _floor_protocol(self, extractor: Extractor) -> dict:
        size = min(self.config.n, len(self.floor_data))
        error = f"bootstrap {self.config.bootstrap}" if self.config.bootstrap else None
        row = protocol(self.config, extractor, self.data, None)
        return row | {"n": size, "fid_error": error, "weights_sha256": self.floor_data.sha256}

    def _floor(self, extractor: Extractor) -> None:
        """The distance between two sets of real images, the best that a sampler can be expected to reach at this n."""
        row = self._floor_protocol(extractor)
        features = extractor(self.floor_data.images[balanced_choice(self.floor_data.labels, row["n"])])
        found = measure(features, self.references[extractor.name], 1, self.config.bootstrap)
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

        sample(2)  # pays for set-up
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
        sampled = self._sample(task, extractors, bar)
        for extractor in extractors:
            row = protocol(config, extractor, self.data, task)
            if self.state.is_main_process:
                features = sampled.features[extractor.name]
                row |= measure(features, self.references[extractor.name], config.sets, config.bootstrap, config.extrapolate)
                row |= {"nfe": sampled.nfe, "seconds_per_image": sampled.seconds, "peak_memory_bytes": sampled.peak}
                row |= {"device": device_words(self.device)}
                row |= {"class_histogram": class_histogram(features, extractor, self.data)}
                row |= {"samples": self._keep(row, sampled.kept)}
                self._write(row)
            self.done[identity(row)] = row

    def _sample(self, task: Task, extractors: list[Extractor], bar: tqdm) -> Sampled:
        """Samples this process's share of sets * n images, one batch at a time, and gathers everyone's."""
        config, run, entry = self.config, task.run, task.entry
        total = config.n * config.sets
        features: dict[str, list[Tensor]] = {e.name: [torch.empty(0, e.width)] for e in extractors}
        kept = [torch.empty(0, run.channels, run.side, run.side, dtype=torch.uint8)]

        def after_step(p: Progress) -> None:
            if p.index == p.steps and not torch.isfinite(p.x).all():
                raise UserError(f"{run.folder} with {task.words} gives NaN or infinite images: its weights have diverged")
            bar.update(len(p.x) * task.nfe / p.steps * self.state.num_processes)

        def sample(indices: Tensor) -> Tensor:
            return sample_images(
                run,
                task.sampler,
                task.steps,
                indices,
                config.seed,
                task.guidance_scale,
                entry.threshold,
                entry.grid,
                callback=after_step,
            )

        sample_images(run, task.sampler, 1, torch.arange(2), config.seed)  # pays for set-up that is not the sampler's
        seconds = 0.0
        reset_peak_memory(self.device)
        with count_evals(run.model.network) as counter:
            for indices in share_of(total, self.state).split(config.batch_size):
                start = time.perf_counter()
                images = sample(indices)  # on the CPU when it returns, so the device has finished
                seconds += time.perf_counter() - start
                for extractor in extractors:
                    features[extractor.name].append(extractor(images))
                if sum(map(len, kept)) < config.keep_samples:
                    kept.append(images)
        peak = peak_memory_bytes(self.device)
        forwards, seconds = sum_over([counter.forwards, seconds], self.state)
        whole = {name: gather_in_order(torch.cat(parts), total, self.state) for name, parts in features.items()}
        first = torch.cat(kept)
        if -(-total // self.state.num_processes) < config.keep_samples:  # few images: the first ones lie on several processes
            first = gather_in_order(first, total, self.state)
        return Sampled(whole, first[: config.keep_samples], forwards / total, seconds / total, peak)

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
    return weights if name == INCEPTION else None


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
    rows = Sweep(config, state).run()
    state.wait_for_everyone()
    return rows
