"""The config of a sweep: which runs, samplers and step counts are measured, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from core.config import Strict
from core.data import DataConfig
from core.diffusion.grids import GRID_NAMES
from core.sampling.denoisers import THRESHOLDS
from core.sampling.solvers import make_sampler


class SweepEntry(Strict):
    """One run, measured with every combination of samplers, steps and guidance_scales.

    method: what the rows call it (null = the method named in the run's config); grid: null = the
    sampler's own.
    """

    run: str
    weights: Literal["ema", "raw"] = "ema"
    method: str | None = None
    samplers: tuple[str, ...] = ("ddim",)
    steps: tuple[int, ...]
    guidance_scales: tuple[float, ...] = (1.0,)
    threshold: Literal[tuple(THRESHOLDS)] = "none"
    grid: Literal[GRID_NAMES] | None = None

    @field_validator("steps")
    @classmethod
    def _steps(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not steps or min(steps) < 1:
            raise ValueError("every number of steps must be at least 1")
        return steps

    @field_validator("samplers")
    @classmethod
    def _samplers(cls, samplers: tuple[str, ...]) -> tuple[str, ...]:
        for name in samplers:
            make_sampler(name)
        return samplers


class SweepConfig(Strict):
    """out: the curves file; runs: folder that the entries' runs are relative to (null = the current
    one); what is not there, such as a published checkpoint's name, is taken as it stands.

    n: images a set; sets: disjoint sets of n, whose mean and standard deviation are reported from 3
    on; bootstrap: resamples for the error bar of a single set (0 = none). extrapolate: points of
    the line that fid_infinity is the intercept of (0 = off); rows measured before get it where
    their features were kept, and else stay as they are. reference: the split compared with; floor:
    also measure the other split against it. keep_samples: first images of every row kept as a
    picture beside `out`; keep_features: keep every point's features in a folder features/ beside
    `out`, from where later sweeps take them in place of sampling. extractor_weights: a file for
    Inception. device: null = a GPU if there is one. compile: run the networks through
    torch.compile, which costs a minute at the start and speeds up long sweeps; the rows name it
    with the device, since it changes the last bits. data: what runs are compared with that do not
    know what they were trained on, such as published checkpoints; a run that knows must have the
    same.
    """

    out: str
    runs: str | None = None
    extractor: str | tuple[str, ...]
    extractor_weights: str | None = None
    reference: Literal["train", "test"] = "train"
    n: int
    sets: int = 1
    bootstrap: int = 20
    extrapolate: int = 0
    seed: int = 0
    batch_size: int = 256
    keep_samples: int = 16
    keep_features: bool = False
    floor: bool = True
    device: str | None = None
    compile: bool = False
    cache: str = "runs/.cache/reference"
    data: DataConfig | None = None
    entries: tuple[SweepEntry, ...]

    @model_validator(mode="after")
    def _sensible(self) -> SweepConfig:
        if self.n < 4:
            raise ValueError(f"n = {self.n}: a set needs at least 4 images")
        if self.sets < 1 or self.sets == 2:
            raise ValueError(
                f"sets = {self.sets}: 1 (with a bootstrapped error bar), or at least 3"
            )
        if self.bootstrap < 0 or self.bootstrap == 1:
            raise ValueError(
                f"bootstrap = {self.bootstrap}: 0 (no error bar), or at least 2 resamples"
            )
        if self.extrapolate < 0 or self.extrapolate in (1, 2):
            raise ValueError(
                f"extrapolate = {self.extrapolate}: 0 (off), or at least 3 points of a line"
            )
        if self.batch_size < 1 or self.keep_samples < 0:
            raise ValueError("batch_size must be at least 1 and keep_samples at least 0")
        if len(set(self.extractors)) < len(self.extractors):
            raise ValueError(f"extractor names one twice: {', '.join(self.extractors)}")
        if not self.entries:
            raise ValueError("entries is empty: nothing to measure")
        return self

    @property
    def extractors(self) -> tuple[str, ...]:
        return (self.extractor,) if isinstance(self.extractor, str) else self.extractor

    def error_bar(self, sets: int, stratified: bool) -> str | None:
        """What fid_std is, in words; stratified: whether the number of images of each class was
        fixed."""
        if sets > 1:
            return f"{sets} sets"
        return (
            f"{'stratified ' if stratified else ''}bootstrap {self.bootstrap}"
            if self.bootstrap
            else None
        )
