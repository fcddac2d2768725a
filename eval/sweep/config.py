"""The config of a sweep: which runs, samplers and step counts are measured, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from core.config import Strict
from core.data import DataConfig
from core.processes import check_device
from core.runs import check_weights
from core.sampling.solvers import make_sampler
from core.setting import GuidanceInterval, GuidanceScale, Option, Setting, Steps, Threshold
from eval.settings import normal

Name = Annotated[str, Field(min_length=1)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]


class Sampled(Strict):
    """How a model is sampled: every combination of samplers, steps and guidance_scales.

    Where `samplers` is null, the model is sampled as it is meant to be, apart from what is given
    here. A sampler that is named begins with everything off that is not given.
    """

    weights: str = "ema"
    """ema: the moving average; raw: the network itself; half-life N: the average of N images that
    is put together from the run's snapshots"""
    samplers: tuple[str, ...] | None = Field(default=None, min_length=1)
    """null: the model's own"""
    steps: tuple[Steps, ...] | None = Field(default=None, min_length=1)
    """null: the model's own"""
    guidance_scales: tuple[GuidanceScale, ...] | None = Field(default=None, min_length=1)
    """weights of classifier-free guidance; 1.0 is off"""
    guidance_interval: GuidanceInterval | None = None
    """the times that guidance acts at, both ends included; null: all"""
    threshold: Threshold | None = None
    """clipping of the guess of x0 at every step"""
    grid: str | None = None
    """spacing of the times; null: the sampler's own"""
    options: dict[str, Option] = {}
    """the samplers' own options, such as eta of ddim"""

    @field_validator("weights")
    @classmethod
    def _weights(cls, weights: str) -> str:
        return check_weights(weights)

    @field_validator("samplers")
    @classmethod
    def _samplers(cls, samplers: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in samplers or ():
            make_sampler(name)
        return samplers

    def settings(self, own: Setting) -> list[Setting]:
        """Every setting of the entry; `own`: how the model is meant to be sampled."""
        given: dict = {"threshold": self.threshold, "grid": self.grid, "options": self.options}
        given |= {"guidance_interval": self.guidance_interval}
        given = {key: value for key, value in given.items() if value}
        found = []
        for sampler in self.samplers or (None,):
            base = own if sampler is None else Setting(sampler=sampler, steps=own.steps)
            base = base.model_copy(update=given)
            for scale in self.guidance_scales or (base.guidance_scale,):
                for steps in self.steps or (base.steps,):
                    chosen = {"guidance_scale": scale, "steps": steps}
                    found.append(normal(base.model_copy(update=chosen)))
        return found


class SweepEntry(Sampled):
    """One run, and how it is sampled."""

    LATER = ("seeds",)

    run: Name
    """folder, or name of a published checkpoint"""
    method: Name | None = None
    """what the rows call it; null: the method named in the run's config"""
    seeds: Seeds | None = None
    """training seeds that are measured, as in the sweep; null: those of the sweep"""


class Measured(Strict):
    """What is measured of samples, whatever they are samples of."""

    extractor: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """feature extractor, or several, which share the samples"""
    extractor_weights: str | None = None
    """weights file for Inception"""
    reference: Literal["train", "test"] = "train"
    """the split compared with"""
    n: int = Field(ge=4, le=10_000_000)
    """images per set"""
    sets: int = Field(default=1, ge=1, le=1000)
    """disjoint sets of n, whose mean and standard deviation are reported from 3 on"""
    bootstrap: int = Field(default=20, ge=0, le=100_000)
    """resamples for the error bar of a single set; 0: none"""
    extrapolate: int = Field(default=0, ge=0, le=1000)
    """points of the line that fid_infinity is the intercept of; 0: off. Rows measured before get it
    where their features were kept, and else stay as they are"""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """sample i depends on (seed, i) alone"""
    batch_size: int = Field(default=256, ge=1, le=1_000_000)
    """images per batch; it falls where memory does not suffice"""
    keep_samples: int = Field(default=16, ge=0, le=10_000)
    """first images of every row, kept as a picture beside `out`"""
    keep_features: bool = False
    """keep every point's features in features/ beside `out`, from where later sweeps take them in
    place of sampling"""
    floor: bool = True
    """also measure the other split against the reference"""
    reconstructions: bool = True
    """where runs are in the latents of an autoencoder, also measure the test images as they come
    back from these"""
    device: str | None = None
    """null: a GPU if there is one"""
    compile: bool = False
    """run the networks through torch.compile, which costs a minute at the start and speeds up long
    sweeps; the rows name it with the device, since it changes the last bits"""
    tf32: bool = False
    """let a GPU multiply float32 in TensorFloat-32 in the networks that are sampled, never in
    extractors; the rows name it with the device"""
    cache: Name = "runs/.cache/reference"
    """folder of the reference's features"""

    @field_validator("device")
    @classmethod
    def _here(cls, device: str | None) -> str | None:
        if device is not None:
            check_device(device)
        return device

    @model_validator(mode="after")
    def _sensible(self) -> Measured:
        if self.sets == 2:
            raise ValueError("sets = 2: 1 (with a bootstrapped error bar), or at least 3")
        if self.bootstrap == 1:
            raise ValueError("bootstrap = 1: 0 (no error bar), or at least 2 resamples")
        if self.extrapolate in (1, 2):
            raise ValueError(
                f"extrapolate = {self.extrapolate}: 0 (off), or at least 3 points of a line"
            )
        if len(set(self.extractors)) < len(self.extractors):
            raise ValueError(f"extractor names one twice: {', '.join(self.extractors)}")
        return self

    @property
    def extractors(self) -> tuple[str, ...]:
        return (self.extractor,) if isinstance(self.extractor, str) else self.extractor

    @property
    def total(self) -> int:
        """Images per point."""
        return self.n * self.sets


class SweepConfig(Measured):
    """Which runs are measured, with what, and where the rows go."""

    LATER = ("seeds",)

    out: Name
    """the curves file"""
    runs: str | None = None
    """folder that the entries' runs are relative to; null: the current one. What is not there, such
    as a published checkpoint's name, is looked for as it is written"""
    data: DataConfig | None = None
    """what runs are compared with that do not know what they were trained on, such as published
    checkpoints; a run that knows must have the same"""
    entries: tuple[SweepEntry, ...] = Field(min_length=1)
    """what is measured"""
    seeds: Seeds | None = None
    """training seeds of every entry: 0 is its run, k is RUN-seedk, sampled with `seed` plus k, so
    that no noise is in the figures of two; null: the run alone, whatever its seed"""

    @model_validator(mode="after")
    def _seeds(self) -> SweepConfig:
        for seeds in (self.seeds or (), *(entry.seeds or () for entry in self.entries)):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"seeds names one twice: {', '.join(map(str, seeds))}")
            if max(seeds, default=0) + self.seed >= 2**32:
                raise ValueError("seeds: seed is added to each, and the sum must be below 2^32")
        return self
