"""The sweep: measures points, once each, and writes their rows.

Planned once, then looked up, and then for each point: sample, measure, write.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from core.codec import Latents
from core.data import DataConfig, ImageData
from core.errors import UserError
from core.pictures import check_drawable, save_png, scatter, tile
from core.processes import start_processes
from core.runs import Load
from eval.curves_file import append_row, drop_torn_line, only_writer, read_rows
from eval.features.extractors import (
    EXTRACTORS,
    Extractor,
    InceptionExtractor,
    check_reads,
    make_extractor,
)
from eval.metrics.extrapolate import sizes_for
from eval.metrics.of_a_row import class_histogram, measure, measure_points, point_distance
from eval.metrics.reference import (
    Reference,
    balanced_choice,
    cache_file,
    shared_extraction,
    shared_reference,
)
from eval.rows import Row
from eval.sweep.config import SweepConfig
from eval.sweep.plan import (
    Measurement,
    Point,
    check_features,
    check_sizes,
    codecs_of,
    data_of,
    floor_measurement,
    measurement,
    plan,
)
from eval.sweep.points import PointSampler
from eval.sweep.store import KEPT, Part, Store, identity
from eval.text import file_name, short_hash


@dataclass
class Task:
    """A point with the rows that are wanted of it, and those of them whose features were kept."""

    point: Point
    wanted: list[Measurement]
    store: Store
    kept: list[Measurement]

    @property
    def fresh(self) -> list[Extractor]:
        """The extractors that need samples."""
        return [m.extractor for m in self.wanted if m not in self.kept]


class Sweep:
    """A sweep on one or several processes. Every process samples its share; the main one measures
    and writes."""

    def __init__(self, config: SweepConfig, state: PartialState, load: Load):
        self.config, self.state, self.out = config, state, Path(config.out)
        self.device = torch.device(config.device) if config.device else state.device
        self.points = plan(config, self.device, load)
        source = data_of(config, self.points[0].run)
        self.data = source.load(config.reference)
        _check_fit(self.points, self.data)
        if config.keep_samples and self.data.density is None:  # points are drawn as a scatter
            check_drawable(self.data.channels, "keep_samples=0")
        self.extractors = make_extractors(config, self.data, self.device)
        check_features(self.points, self.extractors)
        self.floor_data = _floor_data(config, source)
        check_sizes(self.data, self.floor_data)
        self.measurements = [
            measurement(config, self.data, extractor, point)
            for point in self.points
            for extractor in self.extractors
        ]
        self.floors = [
            floor_measurement(config, self.data, extractor, images, codec)
            for extractor in self.extractors
            for images, codec in self._real(source)
        ]
        self.sampler = PointSampler(config, self.points, state, self.device)
        self.references: dict[str, Reference] = {}
        self.rows: dict[tuple, Row] = {}

    def _real(self, source: DataConfig) -> list[tuple[ImageData, Latents | None]]:
        """The real images that are measured, and what they go through before."""
        found = [(self.floor_data, None)] if self.floor_data else []
        codecs = codecs_of(self.points) if self.config.reconstructions else []
        if codecs:
            known = [data for data in (self.floor_data, self.data) if data and data.split == "test"]
            test = known[0] if known else source.load("test")
            check_sizes(self.data, test, "reconstructions are measured", "reconstructions=false")
            found += [(test, codec) for codec in codecs]
        return found

    def run(self) -> list[Row]:
        """Measures what is not in the curves file yet. Returns the sweep's rows, done before or
        now."""
        self._read_rows()
        floors = [m for m in self.floors if m.key not in self.rows]
        tasks, lacking = self._tasks()
        self._announce(tasks, lacking)
        for m in [*floors, *(m for task in tasks for m in task.wanted)]:
            if m.extractor.name not in self.references:
                self.references[m.extractor.name] = shared_reference(
                    self.data, m.extractor, self.config.cache, self.state
                )
        for m in floors:
            self._measure_floor(m)
        self._measure_points(tasks)
        if tasks and self.state.is_main_process:
            _say(f"wrote {self.out}")
        keys = dict.fromkeys(m.key for m in [*self.measurements, *self.floors])
        return [self.rows[key] for key in keys if key in self.rows]

    def _read_rows(self) -> None:
        """Takes up the rows that the curves file holds; on several processes all at once, and
        nobody else may write it."""
        self.state.wait_for_everyone()
        self.rows = {row.key: row for row in read_rows(self.out)}
        self.state.wait_for_everyone()  # all have read it by the time that the main one changes it
        if self.state.is_main_process:
            drop_torn_line(self.out)

    def _tasks(self) -> tuple[list[Task], int]:
        """What is to do, and how many rows lack a metric but have no kept features to get it
        from."""
        tasks: dict[tuple, Task] = {}
        seen, lacking = set(), 0
        for m in self.measurements:
            if m.key in seen:  # the config lists it twice
                continue
            seen.add(m.key)
            row, store = self.rows.get(m.key), self.store_of(m)
            if row is not None and not self._lacks(row, m.extractor):
                continue
            kept = store.may_hold(self.config.total, m.extractor)
            if row is not None and not kept:
                lacking += 1
                continue
            key = (m.point.method, m.point.run.name, m.draft.samples_key)
            task = tasks.setdefault(key, Task(m.point, [], store, []))
            task.wanted.append(m)
            task.kept += [m] if kept else []
        return list(tasks.values()), lacking

    def _lacks(self, row: Row, extractor: Extractor) -> bool:
        """Whether the row has no value for a metric that could be measured now."""
        if self.config.extrapolate and row.fid_infinity is None:
            return True
        if self.data.density is not None:  # points have no more than their distance
            return False
        return (
            row.kid is None and cache_file(self.data, extractor, Path(self.config.cache)).is_file()
        )

    def store_of(self, m: Measurement) -> Store:
        words = (m.draft.run, m.draft.sampler, m.draft.steps)
        return Store(self.out.parent, m.draft.samples_key, words)

    def _announce(self, tasks: list[Task], lacking: int) -> None:
        if not self.state.is_main_process:
            return
        config, total = self.config, self.config.total
        if lacking:
            _say(
                f"{lacking} measured rows lack a metric that is asked for now, and have no kept "
                "features: they stay as they are"
            )
        count = len({id(m.point) for m in self.measurements})
        ready = sum(not task.fresh for task in tasks)
        _say(
            f"{len(tasks)} of {count} points to measure"
            + (f", {ready} from kept features" if ready else "")
            + f": {total} images each, {self._cost(tasks):,} network evaluations in all"
        )
        for extractor in self.extractors:
            if config.n < 2 * extractor.width:
                _say(
                    f"warning: n = {config.n} images for {extractor.width} features: compare only "
                    "numbers at the same n"
                )

    def _cost(self, tasks: Iterable[Task]) -> int:
        return sum(task.point.nfe for task in tasks if task.fresh) * self.config.total

    def _measure_floor(self, m: Measurement) -> None:
        """The distance between two sets of real images, the best that a sampler can be expected to
        reach at this n; one of them, for samplers in latents, as it comes back from these."""
        labels, name = m.real.labels, f"{m.extractor.name} {m.draft.method}"
        chosen = balanced_choice(labels, m.draft.n)
        images = m.real.images[chosen]
        if m.codec:
            images = m.codec.decode(m.codec.encode(images.to(self.device))).cpu()
        with shared_extraction(m.extractor, len(chosen), name, self.state) as (extract, _):
            features = extract(images)
        if self.state.is_main_process:
            strata = labels[chosen] if m.real.num_classes else None
            self._write(m.draft.model_copy(update=self._metrics(m, features, strata)))

    def _measure_points(self, tasks: list[Task]) -> None:
        sampled = [task for task in tasks if task.fresh]
        quiet = not self.state.is_main_process
        if sampled and not quiet:
            todo = [(task.point, task.fresh, task.store) for task in sampled]
            seconds = self.sampler.estimate(todo)
            _say(f"this will take about {duration(seconds)} of sampling and feature extraction")
        with tqdm(
            total=self._cost(tasks),
            unit="eval",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
            disable=quiet,
        ) as bar:
            for number, task in enumerate(tasks, 1):
                bar.set_description(task.point.label)
                self.measure_task(task, bar)
                bar.update(self._cost(tasks[:number]) - bar.n)  # rounding over the processes

    def measure_task(self, task: Task, bar: tqdm) -> None:
        """Samples a point as far as its features are not there, measures and writes its rows."""
        config, main = self.config, self.state.is_main_process
        self.state.wait_for_everyone()  # the main process may just have changed the store
        found = {m.key: task.store.whole(config.total, m.extractor) for m in task.wanted}
        self.state.wait_for_everyone()  # all have found the same
        fresh = [m for m in task.wanted if found[m.key] is None]
        if fresh:
            part = self.sampler.sample(task.point, [m.extractor for m in fresh], task.store, bar)
            found |= dict.fromkeys((m.key for m in fresh), part)
            if config.keep_features and main:
                task.store.add(part, KEPT)
        for m in task.wanted:
            row = self._row(m, found[m.key]) if main else m.draft
            if main:
                self._write(row)
            self.rows[row.key] = row
        if main:
            task.store.forget()

    def _row(self, m: Measurement, part: Part) -> Row:
        features, classes = part.features[identity(m.extractor)], m.point.run.spec.num_classes
        strata = torch.arange(len(features)) % classes if classes else None
        sampled = {
            "nfe": part.forwards / part.count,
            "seconds_per_image": part.seconds / part.count,
            "peak_memory_bytes": part.memory,
            "device": part.device,
            "samples": self._save_strip(m.draft, part.images[: self.config.keep_samples]),
        }
        return m.draft.model_copy(update=self._metrics(m, features, strata) | sampled)

    def _metrics(self, m: Measurement, features: Tensor, strata: Tensor | None) -> dict:
        sets, resamples = m.draft.sets, m.draft.resamples
        extrapolate = self.config.extrapolate if m.point else 0
        reference = self.references[m.extractor.name]
        if distance := point_distance(m.extractor, reference, self.data):
            return measure_points(features, distance, sets, resamples)._asdict()
        found = measure(features, reference, sets, resamples, extrapolate, strata)
        histogram = class_histogram(features, m.extractor, self.data)
        return found._asdict() | {"class_histogram": histogram}

    def _save_strip(self, row: Row, images: Tensor) -> str | None:
        """Stores the first images [K, C, H, W] as a strip, or points as one picture over their
        density; returns its path, relative to the curves file."""
        if not len(images):
            return None
        file = Path("samples") / f"{self._strip_name(row)}.png"
        strip = (
            tile(images, columns=len(images), gap=0)
            if self.data.density is None
            else scatter(images, self.data.density)
        )
        save_png(strip, self.out.parent / file)
        return str(file)

    def _strip_name(self, row: Row) -> str:
        words = file_name((row.method, row.run, row.sampler, row.steps))
        return f"{words}-{short_hash((row.run, *row.samples_key))}"

    def _write(self, row: Row) -> None:
        append_row(self.out, row)
        self.rows[row.key] = row


def _check_fit(points: list[Point], data: ImageData) -> None:
    for run in {id(point.run): point.run for point in points}.values():
        spec = run.spec
        if (spec.channels, spec.side) != (data.channels, data.side):
            raise UserError(
                f"{run.folder} makes {spec.channels}x{spec.side}x{spec.side} images, but data "
                f"'{data.name}' has {data.channels}x{data.side}x{data.side}"
            )


def make_extractors(
    config: SweepConfig, data: ImageData, device: torch.device | str
) -> list[Extractor]:
    """The config's extractors; raises UserError where one does not read the data, or has too few
    images."""
    found = []
    for name in config.extractors:
        inception = issubclass(EXTRACTORS.get(name, Extractor), InceptionExtractor)
        weights = config.extractor_weights if inception else None
        extractor = make_extractor(name, device, weights)
        check_reads(extractor, data)
        if config.extrapolate and data.density is not None:
            raise UserError(
                f"extrapolate = {config.extrapolate}: {extractor.metric_name} of points is not "
                "extrapolated: set 0"
            )
        if config.extrapolate:
            sizes_for(config.total, extractor.width, config.extrapolate)  # refuses what cannot be
        found.append(extractor)
    return found


def _floor_data(config: SweepConfig, source: DataConfig) -> ImageData | None:
    other = "test" if config.reference == "train" else "train"
    return source.load(other) if config.floor else None


def duration(seconds: float) -> str:
    """ "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_sweep(config: SweepConfig, load: Load) -> list[Row]:
    """Measures every point of `config` that its curves file does not hold yet, and returns all its
    rows.

    Raises:
        UserError: before anything is written, for what can be known before; for NaN images when
            they appear.
    """
    state = start_processes(config.device == "cpu", config.tf32)
    sweep = Sweep(config, state, load)
    with only_writer(sweep.out) if state.is_main_process else nullcontext():
        rows = sweep.run()
        state.wait_for_everyone()
    return rows
