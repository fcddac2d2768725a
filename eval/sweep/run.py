"""The evaluator: (run, sampler, steps, seeds) -> one row of the curve, and the sweep that measures
many, once each."""

from __future__ import annotations

import hashlib
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from core.errors import UserError
from core.pictures import save_png, tile
from core.processes import start_processes
from core.runs import Load
from eval.features.extractors import (
    EXTRACTORS,
    Extractor,
    InceptionExtractor,
    check_reads,
    make_extractor,
)
from eval.metrics.extrapolate import sizes_for
from eval.metrics.of_a_row import class_histogram, measure
from eval.metrics.reference import (
    Reference,
    balanced_choice,
    cache_file,
    shared_extraction,
    shared_reference,
)
from eval.rows import append_row, drop_torn_line, identity, only_writer, read_rows
from eval.sweep import kept_features
from eval.sweep.config import SweepConfig
from eval.sweep.plan import Task, check_sizes, data_of, plan, protocol
from eval.sweep.points import PointSampler, Sampled


class Sweep:
    """A sweep on one or several processes. Every process samples its share; the main one measures
    and writes."""

    def __init__(self, config: SweepConfig, state: PartialState, load: Load):
        self.config, self.state = config, state
        self.device = torch.device(config.device) if config.device else state.device
        self.tasks = plan(config, self.device, load)
        source = data_of(config, self.tasks[0].run)
        self.data = source.load(config.reference)
        for run in {task.run.weights_file: task.run for task in self.tasks}.values():
            if (run.channels, run.side) != (self.data.channels, self.data.side):
                raise UserError(
                    f"{run.folder} makes {run.channels}x{run.side}x{run.side} images, but data '{self.data.name}' has "
                    f"{self.data.channels}x{self.data.side}x{self.data.side}"
                )
        self.floor_data = (
            source.load("test" if config.reference == "train" else "train")
            if config.floor
            else None
        )
        check_sizes(self.data, self.floor_data)
        weights = config.extractor_weights
        self.extractors = [
            make_extractor(name, self.device, _weights_for(name, weights))
            for name in config.extractors
        ]
        for extractor in self.extractors:
            check_reads(extractor, self.data.channels, self.data.side, self.data.name)
            if config.extrapolate:
                sizes_for(
                    config.n * config.sets, extractor.width, config.extrapolate
                )  # refuses what cannot be
        self.out = Path(config.out)
        self.features_folder = self.out.parent / "features"
        self.sampler = PointSampler(config, self.tasks, state, self.device)
        self.done: dict[tuple, dict] = {}
        self.references: dict[str, Reference] = {}

    def read_done(self) -> None:
        """Takes up the rows that the curves file holds; on several processes all at once, and
        nobody else may write it."""
        self.state.wait_for_everyone()
        self.done = {identity(row): row for row in read_rows(self.out)}
        self.state.wait_for_everyone()  # all have read the file before the main process changes it

    def missing(self, task: Task) -> list[Extractor]:
        """The extractors under which this task has no row yet, or one that kept features can
        complete."""
        found = []
        for extractor in self.extractors:
            row = self.done.get(identity(protocol(self.config, extractor, self.data, task)))
            if row is None or (
                self._lacks(row, extractor) and self._file_of(task, extractor).is_file()
            ):
                found.append(extractor)
        return found

    def _lacks(self, row: dict, extractor: Extractor) -> bool:
        """Whether the row has no value for a metric that could be measured now."""
        if self.config.extrapolate and row["fid_infinity"] is None:
            return True
        return (
            row["kid"] is None
            and cache_file(self.data, extractor, Path(self.config.cache)).is_file()
        )

    def _file_of(self, task: Task, extractor: Extractor) -> Path:
        row = protocol(self.config, extractor, self.data, task)
        return kept_features.file_of(self.features_folder, row, self.config.n * self.config.sets)

    def _needs_sampling(self, task: Task) -> bool:
        return any(not self._file_of(task, extractor).is_file() for extractor in self.missing(task))

    def run(self) -> list[dict]:
        """Measures what is not in the curves file yet. Returns the sweep's rows, done before or
        now."""
        config, total = self.config, self.config.n * self.config.sets
        todo = [task for task in self.tasks if self.missing(task)]
        floors = [
            e
            for e in self.extractors
            if self.floor_data and identity(self._floor_protocol(e)) not in self.done
        ]
        to_sample = [task for task in todo if self._needs_sampling(task)]
        cost = sum(task.nfe for task in to_sample) * total
        if self.state.is_main_process:
            drop_torn_line(self.out)
            points = f"{len(todo)} of {len(self.tasks)} points to measure"
            if stay := sum(
                self._lacks(self.done[identity(protocol(config, e, self.data, task))], e)
                for task in self.tasks
                for e in self.extractors
                if e not in self.missing(task)
            ):
                _say(
                    f"{stay} measured rows lack a metric that is asked for now, and have no kept features: they stay as they are"
                )
            ready = (
                f", {len(todo) - len(to_sample)} from kept features"
                if len(to_sample) < len(todo)
                else ""
            )
            _say(f"{points}{ready}: {total} images each, {cost:,} network evaluations in all")
            for extractor in self.extractors:
                if config.n < 2 * extractor.width:
                    _say(
                        f"warning: n = {config.n} images for {extractor.width} features: compare only numbers at the same n"
                    )
        for extractor in self.extractors:
            if extractor in floors or any(extractor in self.missing(task) for task in todo):
                self.references[extractor.name] = shared_reference(
                    self.data, extractor, config.cache, self.state
                )
        for extractor in floors:
            self._floor(extractor)
        quiet = not self.state.is_main_process
        if to_sample and not quiet:
            seconds = self.sampler.estimate([(task, self.missing(task)) for task in to_sample])
            _say(f"this will take about {in_words(seconds)} of sampling and feature extraction")
        with tqdm(
            total=cost,
            unit="eval",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
            disable=quiet,
        ) as bar:
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
        """The distance between two sets of real images, the best that a sampler can be expected to
        reach at this n."""
        row = self._floor_protocol(extractor)
        chosen = balanced_choice(self.floor_data.labels, row["n"])
        with shared_extraction(extractor, len(chosen), f"{extractor.name} floor", self.state) as (
            extract,
            _,
        ):
            features = extract(self.floor_data.images[chosen])
        if self.state.is_main_process:
            strata = self.floor_data.labels[chosen] if self.floor_data.num_classes else None
            found = measure(
                features, self.references[extractor.name], 1, self.config.bootstrap, strata=strata
            )
            self._write(
                row | found | {"class_histogram": class_histogram(features, extractor, self.data)}
            )

    def _point(self, task: Task, bar: tqdm) -> None:
        config, extractors = self.config, self.missing(task)
        if not extractors:  # the config lists it twice
            return
        found = {e.name: self._kept(task, e) for e in extractors}
        rest = [e for e in extractors if found[e.name] is None]
        if rest:
            found |= self._sample(task, rest, bar)
        for extractor in extractors:
            row, sampled = protocol(config, extractor, self.data, task), found[extractor.name]
            if self.state.is_main_process:
                classes = task.run.num_classes
                strata = torch.arange(len(sampled.features)) % classes if classes else None
                given = (
                    self.references[extractor.name],
                    config.sets,
                    config.bootstrap,
                    config.extrapolate,
                    strata,
                )
                row |= measure(sampled.features, *given) | sampled.measured
                row |= {"class_histogram": class_histogram(sampled.features, extractor, self.data)}
                row |= {"samples": self._keep(row, sampled.images[: config.keep_samples])}
                self._write(row)
            self.done[identity(row)] = row
        if rest and self.state.is_main_process:
            self.sampler.forget(task, rest)

    def _kept(self, task: Task, extractor: Extractor) -> Sampled | None:
        """What an earlier sweep kept of these samples, if it did; the same answer on every
        process."""
        kept = kept_features.kept(self._file_of(task, extractor))
        return Sampled(*kept) if kept else None

    def _sample(self, task: Task, extractors: list[Extractor], bar: tqdm) -> dict[str, Sampled]:
        """Samples a point, and keeps its features if that is asked for."""
        found = self.sampler.sample(task, extractors, bar)
        if self.config.keep_features and self.state.is_main_process:
            for extractor in extractors:
                row = protocol(self.config, extractor, self.data, task)
                kept_features.keep(self._file_of(task, extractor), row, *found[extractor.name])
        self.state.wait_for_everyone()  # a point that has the same features finds them on every process, or on none
        return found

    def _keep(self, row: dict, images: Tensor) -> str | None:
        """Stores the first images [K, C, H, W] as a strip; returns its path, relative to the curves
        file."""
        if not len(images):
            return None
        sampled = (
            "run",
            "weights_sha256",
            "sampler",
            "steps",
            "guidance_scale",
            "threshold",
            "grid",
            "seed",
        )
        short = hashlib.sha256(repr([row[key] for key in sampled]).encode()).hexdigest()[:8]
        name = "-".join(str(row[key]) for key in ("method", "run", "sampler", "steps"))
        file = Path("samples") / (
            "".join(c if c.isalnum() or c in "-_+." else "_" for c in name) + f"-{short}.png"
        )
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


def run_sweep(config: SweepConfig, load: Load) -> list[dict]:
    """Measures every point of `config` that its curves file does not hold yet, and returns all its
    rows.

    Raises:
        UserError: before anything is written, for what can be known before; for NaN images when
            they appear.
    """
    state = start_processes(cpu=config.device == "cpu")
    sweep = Sweep(config, state, load)
    with only_writer(sweep.out) if state.is_main_process else nullcontext():
        sweep.read_done()
        rows = sweep.run()
        state.wait_for_everyone()
    return rows
