"""What a sweep will measure, known before anything is sampled: its points, their cost, and the rows
as far as they are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from core.codec import Latents
from core.data import DataConfig, ImageData
from core.errors import UserError
from core.runs import Load, NotARun, Run
from core.sampling.sample import expected_nfe
from core.setting import Setting
from core.training.checkpoints import latest_checkpoint
from eval.curves.seeds import seeded
from eval.curves.series import method_label
from eval.features.extractors import Extractor
from eval.metrics.distances import SMALLEST
from eval.rows import Row, error_words
from eval.settings import grid_name
from eval.sweep.config import SweepConfig, SweepEntry
from eval.sweep.machine import commit


@dataclass(frozen=True, eq=False)
class Point:
    """Samples to be made: a model, how it is sampled, and the seed of its noise. nfe: network
    evaluations per image, as expected (what the row reports is counted)."""

    run: Run
    method: str
    setting: Setting
    nfe: int
    seed: int

    @property
    def label(self) -> str:
        return f"{method_label(self.method)}, {self.setting.label()}"


@dataclass(frozen=True, eq=False)
class Measurement:
    """A row to be: samples (None: the floor's real images) in the eyes of one extractor. draft: the
    row as far as it is known. real: the images of a floor, and codec what they go through."""

    point: Point | None
    extractor: Extractor
    draft: Row
    real: ImageData | None = None
    codec: Latents | None = None

    @property
    def key(self) -> tuple:
        return self.draft.key


def data_of(config: SweepConfig, run: Run) -> DataConfig:
    """The data a run is compared with: its own, or the sweep's where the run does not know. The
    sweep's may lie elsewhere than where the run was trained.

    Raises:
        UserError: neither is known, or they differ in more than their place.
    """
    spec = run.spec
    if run.data is None and config.data is None:
        raise UserError(
            f"{run.folder} does not say what it was trained on ({spec.channels}x{spec.side}x"
            f"{spec.side} images): name the data to compare it with, in a config data: {{name: "
            "cifar10}, on the command line --data cifar10"
        )
    if run.data is not None and config.data is not None:
        trained, given = run.data, config.data
        if trained.name != given.name:
            raise UserError(
                f"{run.folder} was trained on data {trained.name}, but the sweep's data is "
                f"{given.name}: remove data"
            )
        for key in ("side", "fit", "background", "alpha"):
            theirs, ours = getattr(trained, key), getattr(given, key)
            if theirs != ours:
                raise UserError(
                    f"{run.folder} was trained on {key} {theirs}, but the sweep's data has "
                    f"{key} {ours}: change it"
                )
    return config.data if config.data and (run.data is None or config.data.root) else run.data


def check_features(points: list[Point], extractors: list[Extractor]) -> None:
    """Raises UserError where a run was trained by a critic that saw the features of an extractor:
    the distance in them is what it was trained to make small. An extractor's variants, which begin
    with its name, count as it."""
    for run in {id(point.run): point.run for point in points}.values():
        for extractor in extractors:
            for seen in run.critic_features:
                if extractor.name.startswith(seen) or seen.startswith(extractor.name):
                    raise UserError(
                        f"{run.folder} was trained by a critic that saw the features of '{seen}', and "
                        f"is not measured in those of '{extractor.name}': choose another extractor"
                    )


def check_sizes(
    data: ImageData,
    floor_data: ImageData | None,
    use: str = "the floor is measured",
    mend: str = "floor=false",
) -> None:
    """Raises UserError where the images are too few for the metrics: those of the reference, or
    those that the floor is measured with. use, mend: the same in words for other such images."""
    for part, words, remedy in (
        (data, "the reference", ""),
        (floor_data, f"which {use} with", f", or set {mend}"),
    ):
        if part is not None and len(part) < SMALLEST:
            raise UserError(
                f"data '{part.name}': its {part.split} split, {words}, is too small: {len(part)} "
                f"image{'s' * (len(part) != 1)}, and the metrics need at least {SMALLEST}: add "
                f"images{remedy}"
            )


class _Runs:
    """The runs of a sweep, each network loaded once."""

    def __init__(self, config: SweepConfig, device: torch.device, load: Load):
        self.config, self.device, self.load = config, device, load
        self.loaded: dict[tuple, Run] = {}

    def find(self, entry: SweepEntry, steps: int | None = None) -> Run:
        """The entry's run in the folder `config.runs`, or by its own name where there is none; with
        `steps`, the model that it keeps for so many."""
        if self.config.runs is None:
            return self._once(Path(entry.run), entry, steps)
        try:
            return self._once(Path(self.config.runs) / entry.run, entry, steps)
        except NotARun:
            with suppress(NotARun):
                return self._once(Path(entry.run), entry, steps)
            raise

    def _once(self, folder: Path, entry: SweepEntry, steps: int | None) -> Run:
        key = (folder, entry.weights, latest_checkpoint(folder, steps))
        if key not in self.loaded:
            self.loaded[key] = self.load(folder, entry.weights, self.device, steps)
        return self.loaded[key]


def _trainings(config: SweepConfig) -> Iterator[tuple[SweepEntry, int | None]]:
    """Each entry for each of its training seeds, with the run of that seed."""
    for entry in config.entries:
        for seed in entry.seeds or config.seeds or (None,):
            yield entry.model_copy(update={"run": seeded(entry.run, seed or 0)}), seed


def _check_seed(run: Run, seed: int | None) -> None:
    """Raises UserError where a run was trained with another seed than the sweep says."""
    if None not in (seed, run.train_seed) and seed != run.train_seed:
        raise UserError(
            f"{run.folder} was trained with seed {run.train_seed}, and the sweep measures it as "
            f"seed {seed}: train it with train.seed={seed}, or change seeds"
        )


def plan(config: SweepConfig, device: torch.device, load: Load) -> list[Point]:
    """All points of the sweep, in the order of the config; everything that can be refused is
    refused here."""
    runs, points = _Runs(config, device, load), []
    for entry, seed in _trainings(config):
        own = runs.find(entry, entry.steps[0] if entry.steps else None)
        for setting in entry.settings(own.spec.setting):
            run = runs.find(entry, setting.steps)
            _check_seed(run, seed)
            try:
                nfe = expected_nfe(run.model, setting)
            except UserError as error:
                raise UserError(f"{run.folder} with {setting.label()}: {error}") from error
            noise = config.seed + (seed or 0)
            points.append(Point(run, entry.method or run.method, setting, nfe, noise))
    used = {
        (data.name, data.side, data.root if data.name == "folder" else None)
        for data in (data_of(config, point.run) for point in points)
    }
    if len(used) > 1:
        raise UserError(
            "the runs of one sweep share a data set, these have "
            f"{sorted(name for name, *_ in used)}: split it"
        )
    return points


def measurement(
    config: SweepConfig, data: ImageData, extractor: Extractor, point: Point
) -> Measurement:
    """The row of a point, still without what is measured."""
    run, setting = point.run, point.setting
    sampled = {
        "method": point.method,
        "run": run.name,
        "teacher": run.teacher,
        "sampler": setting.sampler,
        "steps": setting.steps,
        "nfe": float(point.nfe),
        "guidance_scale": setting.guidance_scale,
        "ema": run.ema,
        "seed": point.seed,
        "threshold": setting.threshold,
        "grid": grid_name(setting),
        "options": setting.options,
        "guidance_interval": setting.guidance_interval,
        "train_images": run.train_images,
        "train_evals": run.train_evals,
        "train_seconds": run.train_seconds,
        "config_sha256": run.config_sha256,
        "weights_sha256": run.weights_sha256,
        "train_seed": run.train_seed,
        "ema_half_life": run.ema_half_life,
        "critic_features": run.critic_features,
        "codec": run.spec.codec_words,
    }
    stratified = bool(run.spec.num_classes)
    shared = _shared(config, data, extractor, config.n, config.sets, stratified)
    return Measurement(point, extractor, Row(**sampled, **shared))


def floor_measurement(
    config: SweepConfig,
    data: ImageData,
    extractor: Extractor,
    other: ImageData,
    codec: Latents | None = None,
) -> Measurement:
    """The row of the split `other` of the data, of at most n images; with `codec` of what that
    makes of them."""
    run, seen = f"{data.name} {other.split}", codec and codec.spec
    sampled = {
        "method": "reconstructions" if seen else "floor",
        "run": f"{run} through {seen.autoencoder}" if seen else run,
        "sampler": None,
        "weights_sha256": seen.sha256 if seen else other.sha256,
        "codec": seen and seen.words(data.channels, data.side),
    }
    n, stratified = min(config.n, len(other)), bool(other.num_classes)
    shared = _shared(config, data, extractor, n, 1, stratified)
    return Measurement(None, extractor, Row(**sampled, **shared), other, codec)


def codecs_of(points: list[Point]) -> list[Latents]:
    """The autoencoders in whose latents the runs of the points are, each once."""
    found = [point.run.model.codec for point in points]
    return list({codec.sha256: codec for codec in found if isinstance(codec, Latents)}.values())


def _shared(
    config: SweepConfig, data: ImageData, extractor: Extractor, n: int, sets: int, stratified: bool
) -> dict:
    resamples = config.bootstrap if sets == 1 else 0
    return {
        "dataset": data.name,
        "metric": extractor.metric_name,
        "fid": math.nan,
        "fid_error": error_words(sets, resamples, stratified),
        "n": n,
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "reference": f"{data.name} {config.reference}",
        "reference_sha256": data.sha256,
        "commit": commit(),
        "sets": sets,
        "resamples": resamples,
    }
