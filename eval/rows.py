"""Rows: measured points of a curve, as lines of curves.jsonl publish them.

A row is read once, here: everyone else sees typed values, the sampling setting whole, and numbers
of sets and resamples as numbers.
"""

from __future__ import annotations

import json
import math
import re
from functools import cached_property
from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from core.config import Strict
from core.errors import UserError
from core.runs import weights_in_words
from core.sampling.solvers import OLD_NAMES
from core.setting import GuidanceInterval, GuidanceScale, Option, Setting, Steps, Threshold
from eval.settings import normal

# Distances of points of the plane (eval/metrics/points.py), which no features come between
OF_POINTS = {"SW2": "sliced 2-Wasserstein distance", "KL": "histogram KL in nats"}
FULL_FID = 50_000  # the n that an FID without an n in its name has

LARGEST = 1e30  # beyond it a number is a slip, and its square no number
Real = Annotated[FiniteFloat, Field(gt=-LARGEST, lt=LARGEST)]
NotNegative = Annotated[FiniteFloat, Field(ge=0, lt=LARGEST)]
Positive = Annotated[FiniteFloat, Field(gt=0, lt=LARGEST)]
Whole = Annotated[int, Field(ge=0, lt=2**53)]  # larger ones are no longer exact in JSON
Count = Annotated[int, Field(ge=1, lt=2**53)]


class Protocol(NamedTuple):
    """Rows that agree in these may be drawn in one curve or table."""

    dataset: str
    metric: str
    n: int
    extractor: str
    extractor_sha256: str
    reference: str
    reference_sha256: str


class Row(Strict):
    """One line of curves.jsonl, its keys in their published order.

    A floor compares real images with real images: nothing was sampled, so `sampler` and what goes
    with it are null. With `codec` it compares reconstructions by an autoencoder with them, which is
    the best that models in its latents can be expected to reach.
    """

    model_config = ConfigDict(extra="ignore")

    dataset: str
    method: str
    run: str
    teacher: str | None = None
    sampler: str | None
    steps: Steps | None = None
    nfe: Positive | None = None
    """network evaluations per image, counted"""
    guidance_scale: GuidanceScale | None = None
    metric: str
    """FID, or FD in other features than Inception's; SW2 or KL of points"""
    fid: float
    """the distance; NaN where it has not been measured yet"""
    fid_std: NotNegative | None = None
    """of one set of n images"""
    fid_error: str | None = None
    """what fid_std is, in words"""
    fid_infinity: Real | None = None
    kid: Real | None = None
    precision: Real | None = None
    recall: Real | None = None
    n: Count
    """images per set"""
    extractor: str
    extractor_sha256: str
    reference: str
    reference_sha256: str
    ema: str | None = None
    seed: int | None = None
    threshold: Threshold | None = None
    grid: str | None = None
    seconds_per_image: NotNegative | None = None
    peak_memory_bytes: Whole | None = None
    device: str | None = None
    train_images: Whole | None = None
    train_evals: NotNegative | None = None
    train_seconds: NotNegative | None = None
    config_sha256: str | None = None
    weights_sha256: str
    commit: str | None = None
    class_histogram: Annotated[tuple[Whole, ...], Field(strict=False)] | None = None
    """images that the classifier counts to each class"""
    samples: str | None = None
    """picture of the first samples, relative to the curves file"""
    options: dict[str, Option] = {}
    """the sampler's own options"""
    sets: Count = 1
    """sets of n images, whose mean fid is"""
    resamples: Whole = 0
    """of the bootstrap that fid_std comes from; 0: there was none"""
    train_seed: Whole | None = None
    """of the training; null where the model does not say"""
    ema_half_life: NotNegative | None = None
    """images that make up half of the average; null: not known, and a half-life in `ema` is the
    configured one, which many runs did not reach"""
    critic_features: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """what the critics saw that the model was trained by; never those of `extractor`"""
    codec: str | None = None
    """latents that the network saw, by their shape and their autoencoder; null: the data"""
    guidance_interval: Annotated[GuidanceInterval, Field(strict=False)] | None = None
    """the times that guidance acts at; null: all"""

    @model_validator(mode="before")
    @classmethod
    def _earlier_versions(cls, values: Any) -> Any:
        return earlier_versions(values)

    @model_validator(mode="after")
    def _whole(self) -> Row:
        if self.sampler is not None:
            for key in ("steps", "nfe", "ema", "seed"):
                if getattr(self, key) is None:
                    raise ValueError(
                        f"key '{key}' is missing or null, though the row has a sampler"
                    )
        if LARGEST < abs(self.fid) < math.inf:
            raise ValueError(f"key 'fid' is {self.fid:g}, more than any distance")
        if self.class_histogram is not None and not sum(self.class_histogram):
            raise ValueError("key 'class_histogram' counts no image")
        return self

    @property
    def is_floor(self) -> bool:
        """Whether the row compares real images with real images, as they are or reconstructed."""
        return self.sampler is None

    @property
    def is_reconstruction(self) -> bool:
        """Whether it is a floor of images that went through a codec."""
        return self.is_floor and self.codec is not None

    @property
    def weights(self) -> str | None:
        """Which weights were sampled, in words; None for a floor."""
        return self.ema and weights_in_words(self.ema, self.ema_half_life)

    @cached_property
    def setting(self) -> Setting | None:
        """How the images were sampled; None for a floor."""
        if self.sampler is None:
            return None
        return normal(
            Setting(
                sampler=self.sampler,
                steps=self.steps,
                grid=self.grid,
                guidance_scale=1.0 if self.guidance_scale is None else self.guidance_scale,
                threshold=self.threshold or "none",
                options=self.options,
                guidance_interval=self.guidance_interval,
            )
        )

    @property
    def protocol(self) -> Protocol:
        return Protocol(*(getattr(self, name) for name in Protocol._fields))

    @property
    def members(self) -> tuple[Row, ...]:
        """The rows that this one is the mean of: itself, but for a mean over training seeds
        (eval/curves/seeds.py)."""
        return (self,)

    @property
    def repeats(self) -> int:
        """Independent measurements that `fid` is the mean of; `fid_std` is of one."""
        return self.sets

    @property
    def bar(self) -> float | None:
        """The error that tables and pictures show beside `fid`."""
        return self.fid_std

    @property
    def samples_key(self) -> tuple:
        """What decides the samples, whatever is measured on them."""
        return (self.weights_sha256, self.setting and self.setting.key(), self.seed)

    @property
    def key(self) -> tuple:
        """What makes two rows measurements of the same thing. Machine, batch size, process count
        and date do not."""
        error = (self.fid_error, self.sets, self.resamples)
        return (self.method, self.run, *self.samples_key, error, self.protocol)

    @property
    def series(self) -> tuple:
        """What the points of one curve have in common: everything but the number of steps. Not the
        weights: a run may keep other weights for other numbers of steps, and is one curve all the
        same."""
        setting = self.setting and self.setting.model_copy(update={"steps": 1}).key()
        return (self.method, self.run, self.ema, setting, self.config_sha256, self.seed)

    def json_line(self) -> str:
        """The row as it is published. Raises ValueError if it has not been measured."""
        return json.dumps(self.model_dump(), allow_nan=False)


def error_words(sets: int, resamples: int, stratified: bool) -> str | None:
    """What fid_std is, in words; stratified: whether the number of images of each class was
    fixed."""
    if sets > 1:
        return f"{sets} sets"
    return f"{'stratified ' if stratified else ''}bootstrap {resamples}" if resamples else None


_NUMBERS = {"sets": r"(\d{1,9}) sets", "resamples": r"(?:stratified )?bootstrap (\d{1,9})"}


def earlier_versions(values: Any) -> Any:
    """A row's keys as of today, where earlier versions named samplers otherwise, and sets and
    resamples in words alone."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    if isinstance(sampler := values.get("sampler"), str):
        values["sampler"] = OLD_NAMES.get(sampler, sampler)
    if isinstance(words := values.get("fid_error"), str):
        for key, pattern in _NUMBERS.items():
            if match := re.fullmatch(pattern, words):
                values.setdefault(key, int(match[1]))
    return values


class Unmeasured(Exception):
    """A row without a distance: null or NaN."""


def parse_row(line: bytes, where: str) -> Row:
    """One line as a row; `where` names it in messages.

    Raises:
        Unmeasured: its fid is null or no finite number. UserError: anything else is wrong, with the
            key.
    """
    try:
        row = Row.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("fid",) and first["input"] is None:
            raise Unmeasured from error
        raise UserError(f"{where}: {said(error)}: mend or delete that line") from error
    if not math.isfinite(row.fid):
        raise Unmeasured
    return row


def said(error: ValidationError) -> str:
    """The first mistake in a row, as a part of one line that names the key."""
    first = error.errors()[0]
    key, kind = ".".join(map(str, first["loc"])), first["type"]
    if kind == "json_invalid":
        return f"not valid JSON ({first['ctx']['error']})"
    if kind in ("model_type", "model_attributes_type"):
        return "not a JSON object"
    if kind == "missing":
        return f"key '{key}' is missing"
    if kind == "value_error":
        return str(first["ctx"]["error"])
    given = json.dumps(first["input"], default=str)
    given = given if len(given) <= 60 else f"{given[:57]}..."
    return f"key '{json.dumps(key)[1:-1]}' is {given}: {first['msg'][0].lower()}{first['msg'][1:]}"


def distance_label(row: Row) -> str:
    """The distance with what it is taken in: "FD@300, digits-cnn features", or in words."""
    words = OF_POINTS.get(row.metric, f"{row.extractor} features")
    return f"{measure_label(row)}, {words}"


def measure_label(row: Row, key: str = "fid") -> str:
    """The name a metric must go by: "FD@300", "FID", "KD@300", "FD∞"; only an FID of 50,000 images
    is called FID plainly."""
    if key == "fid_infinity":
        return f"{row.metric}∞"
    names = {
        "fid": row.metric,
        "kid": "KID" if row.metric == "FID" else "KD",
        "class_distance": "share of classes off",
    }
    name = names.get(key, key)
    return name if row.metric == "FID" and row.n >= FULL_FID else f"{name}@{row.n}"
