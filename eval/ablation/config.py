"""The config of a study: a run's config with an axis or more along which it is changed, the seeds,
and what is measured."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, model_validator

from core.config import Strict, apply_overrides, base_of, parse, read_config
from core.errors import UserError, nearest
from core.training.config import RunConfig
from eval.sweep.config import Measured, Sampled, SweepConfig, SweepEntry

MOST = 10_000  # trainings of a study
Value = bool | int | FiniteFloat | str | None | tuple[Any, ...] | dict[str, Any]


class StudySweep(Sampled, Measured):
    """What is measured of every cell. Sampled with noise that follows the training seed: cells of
    one seed share it, and no seed's noise is in the mean of another."""

    keep_samples: int = Field(default=0, ge=0, le=10_000)
    """first images of every row, kept as a picture in the cell's folder"""
    floor: bool = False
    """also measure the other split against the reference, for every cell"""
    reconstructions: bool = False
    """also measure the test images as latents give them back, for every cell"""

    def changed(self, changes: dict[str, Any], source: str) -> StudySweep:
        """The same with other values of `sweep.KEY`. Raises UserError for impossible ones."""
        given = [f"{k.removeprefix('sweep.')}={json.dumps(v)}" for k, v in changes.items()]
        return parse(StudySweep, apply_overrides(self.model_dump(mode="json"), given), source)

    def of_run(self, folder: Path, seed: int) -> SweepConfig:
        """The sweep of one training run, whose rows go into its own folder."""
        measured = {key: getattr(self, key) for key in Measured.model_fields}
        sampled = {key: getattr(self, key) for key in Sampled.model_fields}
        measured |= {"seed": self.seed + seed, "out": str(folder / "curves.jsonl")}
        return SweepConfig(**measured, entries=(SweepEntry(run=str(folder), **sampled),))


class StudyConfig(Strict):
    """What a study's file says beyond the config of the run that it changes."""

    question: str
    """what the study answers, in words"""
    axes: dict[str, tuple[Value, ...]] = {}
    """overrides with the values that each takes; every combination is a cell. Those of sweep.weights
    and other keys by which a run is sampled share the training"""
    variants: dict[str, dict[str, Any]] = {}
    """or named sets of overrides, each a cell"""
    excluded: tuple[dict[str, Value], ...] = Field(default=(), alias="except")
    """conditions; a cell that meets all of one is left out. A list means any of its values"""
    seeds: tuple[Annotated[int, Field(lt=2**32)], ...]
    """seeds of training (train.seed); each cell is trained with every one"""
    sweep: StudySweep
    """what is measured"""
    out: str | None = None
    """where the study's table goes; null: runs/DATASET/ablations/NAME"""

    @model_validator(mode="after")
    def _sensible(self) -> StudyConfig:
        if not self.question.strip():
            raise ValueError("question is empty: say what the study is to answer")
        if bool(self.axes) == bool(self.variants):
            raise ValueError("give exactly one of axes and variants")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds: at least one, each once, from 0 up")
        if max(self.seeds) + self.sweep.seed >= 2**32:
            raise ValueError("seeds: sweep.seed is added to each, and the sum must be below 2^32")
        trainings = prod(map(len, self.factors.values())) * len(self.seeds)
        if trainings > MOST:
            raise ValueError(f"{trainings:,} trainings: at most {MOST:,} in a study")
        if len(self.variants) == 1:
            raise ValueError("variants has one variant: nothing to compare it with")
        for key, values in self.axes.items():
            _check_key(key)
            if len(values) < 2 or len({words(value) for value in values}) < len(values):
                raise ValueError(f"axes: {key} needs at least two values, each once")
        for changes in self.variants.values():
            for key in changes:
                _check_key(key)
        for condition in self.excluded:
            for key in condition:
                if key not in self.factors:
                    known = nearest(key, self.factors)
                    raise ValueError(f"except: '{key}' is no axis{known}")
        return self

    @property
    def factors(self) -> dict[str, tuple[str, ...]]:
        """The levels of each axis in words; variants are one axis."""
        if self.variants:
            return {"variant": tuple(self.variants)}
        return {key: tuple(words(value) for value in values) for key, values in self.axes.items()}


# Keys of the sweep that an axis may change: with the others, points would not be the same
SAMPLED = ("weights", "threshold", "grid", "options", "guidance_interval")


def _check_key(key: str) -> None:
    if key.split(".")[0] == "sweep":
        name = key.removeprefix("sweep.").split(".")[0]
        if name not in SAMPLED:
            known = ", ".join(f"sweep.{known}" for known in SAMPLED)
            raise ValueError(f"an axis may not be {key}: of the sweep {known}")
    if key in ("run", "log", "train.seed") or key.startswith("log."):
        instead = ": give seeds" if key == "train.seed" else ", which changes nothing of a training"
        raise ValueError(f"an axis may not be {key}{instead}")


def words(value: object) -> str:
    """A value as it is written in a config."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return value if isinstance(value, str) else json.dumps(value)


def _dotted(values: dict, prefix: str = "") -> dict[str, Any]:
    """Sections written out as dotted keys; what comes later wins."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def read_study(path: Path, overrides: list[str] = ()) -> tuple[StudyConfig, dict]:
    """A study's file over its `base`: what it says as a study, and the values of the run config
    that its cells change.

    Raises:
        UserError: an unknown key, a wrong type, or an axis that cannot be one.
    """
    values = read_config(path, overrides)
    known = {field.alias or name for name, field in StudyConfig.model_fields.items()}
    for key in values:
        if key not in known | RunConfig.model_fields.keys():
            near = nearest(key, known | RunConfig.model_fields.keys())
            raise UserError(f"{path}: unknown key '{key}'{near}")
    study = {key: values.pop(key) for key in known & values.keys()}
    if isinstance(study.get("axes"), dict):  # an override of an axis comes as sections
        study["axes"] = _dotted(study["axes"])
    return parse(StudyConfig, study, str(path)), values


def base_run(path: Path) -> Path | None:
    """The file of the run config that a study is based on, through other studies; None where it
    stands alone."""
    base = base_of(path)
    while base is not None and "seeds" in read_config(base):
        base = base_of(base)
    return base
