"""What a sweep will measure, known before anything is sampled: its points, their cost, and the
first half of their rows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.data import DataConfig, ImageData
from core.diffusion.grids import make_grid
from core.diffusion.parameterisations import Denoised
from core.errors import UserError
from core.noise import Noise
from core.runs import Load, NotARun, Run
from core.sampling.solvers import make_sampler
from eval.features.extractors import Extractor
from eval.metrics.distances import SMALLEST
from eval.sweep.config import SweepConfig, SweepEntry
from eval.sweep.machine import commit


@dataclass(frozen=True)
class Task:
    """One point to measure. nfe: network evaluations an image, expected (what the row reports is
    counted)."""

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


def expected_nfe(
    run: Run, sampler: str, grid: str | None, steps: int, guidance_scale: float
) -> int:
    """Network evaluations an image, found by running the sampler on one pixel; for the estimate and
    the progress bar.

    Raises:
        UserError: a grid that this run does not have, or guidance without classes.
    """
    chosen = make_sampler(sampler)
    try:
        times = make_grid(grid or chosen.grid, run.model.path, steps, run.model.discrete_steps)
    except UserError as error:
        raise UserError(f"{run.folder} with {sampler}: {error}") from error
    if guidance_scale != 1.0 and not run.num_classes:
        raise UserError(
            f"{run.folder}: guidance_scale={guidance_scale} needs a class-conditional model; 1.0 is off"
        )
    stub = _Stub(run.model.path)
    chosen.run(stub, torch.zeros(1, 1, 1, 1), times, Noise(0, torch.zeros(1, dtype=torch.int64)))
    return stub.calls * (1 if guidance_scale == 1.0 else 2)


def data_of(config: SweepConfig, run: Run) -> DataConfig:
    """The data a run is compared with: its own, or the sweep's where the run does not know. The
    sweep's may lie elsewhere than where the run was trained.

    Raises:
        UserError: neither is known, or they differ in more than their place.
    """
    if run.data is None and config.data is None:
        raise UserError(
            f"{run.folder} does not say what it was trained on ({run.channels}x{run.side}x{run.side} images): name the data to "
            "compare it with, in a config data: {name: cifar10}, on the command line --data cifar10"
        )
    if run.data is not None and config.data is not None:
        trained, given = run.data, config.data
        if trained.name != given.name:
            raise UserError(
                f"{run.folder} was trained on data {trained.name}, but the sweep's data is {given.name}: remove data"
            )
        for key in ("side", "fit", "background", "alpha"):
            theirs, ours = getattr(trained, key), getattr(given, key)
            if theirs != ours:
                raise UserError(
                    f"{run.folder} was trained on {key} {theirs}, but the sweep's data has "
                    f"{key} {ours}: change it"
                )
    return config.data if config.data and (run.data is None or config.data.root) else run.data


def check_sizes(data: ImageData, floor_data: ImageData | None) -> None:
    """Raises UserError where the images are too few for the metrics: those of the reference, or
    those that the floor is measured with."""
    for part, words, remedy in (
        (data, "the reference", ""),
        (floor_data, "which the floor is measured with", ", or set floor=false"),
    ):
        if part is not None and len(part) < SMALLEST:
            raise UserError(
                f"data '{part.name}': its {part.split} split, {words}, is too small: {len(part)} "
                f"image{'s' * (len(part) != 1)}, and the metrics need at least {SMALLEST}: add "
                f"images{remedy}"
            )


def _load_entry(
    config: SweepConfig, entry: SweepEntry, device: torch.device, steps: int, load: Load
) -> Run:
    """The entry's run in the folder `config.runs`, or by its own name where there is none."""
    if config.runs is None:
        return load(entry.run, entry.weights, device, steps)
    try:
        return load(Path(config.runs) / entry.run, entry.weights, device, steps)
    except NotARun:
        with suppress(NotARun):
            return load(entry.run, entry.weights, device, steps)
        raise


def plan(config: SweepConfig, device: torch.device, load: Load) -> list[Task]:
    """All points of the sweep, in the order of the config; everything that can be refused is
    refused here."""
    tasks = []
    for entry in config.entries:
        loaded: dict[Path, Run] = {}  # a run may keep another model for some numbers of steps
        for sampler in entry.samplers:
            for scale in entry.guidance_scales:
                for steps in entry.steps:
                    run = _load_entry(config, entry, device, steps, load)
                    run = loaded.setdefault(run.weights_file, run)
                    nfe = expected_nfe(run, sampler, entry.grid, steps, scale)
                    tasks.append(Task(run, entry, sampler, steps, scale, nfe))
    used = {
        (data.name, data.side, data.root if data.name == "folder" else None)
        for data in (data_of(config, t.run) for t in tasks)
    }
    if len(used) > 1:
        raise UserError(
            f"the runs of one sweep share a data set, these have {sorted(name for name, *_ in used)}: split it"
        )
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
        "fid_error": config.error_bar(
            config.sets if task else 1, bool(run.num_classes if task else data.num_classes)
        ),
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
