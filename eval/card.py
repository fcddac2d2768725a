"""card.json beside a shipped model: rows as the harness writes them, and whether they are met when
measured again.

    {"data": {"name": "digits"}, "rows": [{"sampler": "ddim", "steps": 16, "n": 300, "seed": 0,
    "extractor": "digits-cnn", "fid": 2.59, "fid_std": 0.57, "fid_error": "3 sets", ...}]}

`data` is needed where the run does not know what it was trained on. Other keys, of the card and of
its rows, are the author's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, model_validator

from core.config import Strict, parse
from core.errors import UserError
from core.files import read_json
from core.runs import Load
from core.setting import GuidanceInterval, GuidanceScale, Option, Steps, Threshold
from eval.curves.series import by_protocol, measured
from eval.curves_file import read_rows
from eval.rows import Count, Positive, Real, Row, Whole, earlier_versions, said
from eval.sweep.config import SweepConfig
from eval.sweep.run import run_sweep

WORST = 4.0  # standard deviations


class Expected(Strict):
    """A row of a card: as much of a published row as is needed to measure it again."""

    model_config = ConfigDict(extra="ignore")

    sampler: str
    steps: Steps
    n: Count
    seed: int
    extractor: str
    fid: Real
    fid_std: Positive
    """what a deviation is measured in"""
    sets: Count = 1
    resamples: Whole = 20
    guidance_scale: GuidanceScale | None = None
    threshold: Threshold | None = None
    grid: str | None = None
    options: dict[str, Option] = {}
    guidance_interval: Annotated[GuidanceInterval, Field(strict=False)] | None = None
    nfe: Positive | None = None
    metric: str = "Fréchet distance"
    ema: str | None = None
    reference: str | None = None
    weights_sha256: str | None = None
    extractor_sha256: str | None = None
    reference_sha256: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _earlier_versions(cls, values: Any) -> Any:
        return earlier_versions(values)

    @property
    def cost(self) -> float:
        """Network evaluations that measuring the row again takes, about."""
        return (self.nfe or self.steps) * self.n * self.sets


@dataclass(frozen=True)
class Card:
    """The expected rows of a card, cheapest first, and its data section if it has one."""

    file: Path
    rows: tuple[Expected, ...]
    data: dict | None


@dataclass(frozen=True)
class Verdict:
    """expected and measured rows; deviations: (measured - expected) / fid_std, positive where it is
    worse."""

    expected: Expected
    measured: Row
    deviations: float

    @property
    def worse(self) -> bool:
        return self.deviations > WORST

    @property
    def other_weights(self) -> str | None:
        """The sha256 of the weights that were expected, where others were measured."""
        expected = self.expected.weights_sha256
        return expected if expected not in (None, self.measured.weights_sha256) else None

    def __str__(self) -> str:
        e, m = self.expected, self.measured
        side = "worse" if self.deviations > 0 else "better"
        verdict = (
            f"more than {WORST:g}: NOT what its card says" if self.worse else "as its card says"
        )
        return (
            f"{m.setting.label()}, n = {e.n}, {e.extractor}: {m.metric} {m.fid:.4g}, the card "
            f"{e.fid:.4g} ± {e.fid_std:.2g}: {abs(self.deviations):.2f} standard deviations "
            f"{side}, {verdict}"
        )


def read_rows_as_card(file: Path, run: str) -> Card:
    """A card that lies anywhere, or the rows of a curves file (.jsonl) that were measured on the
    run of that name: where a point was measured again, the last.

    Raises:
        UserError: no such file, no such row, or not a card.
    """
    if not file.is_file():
        raise UserError(
            f"{file} does not exist: give a file like card.json, or rows of scripts.evaluate "
            "(.jsonl)"
        )
    if file.suffix != ".jsonl":
        return _read(file)
    rows = measured(read_rows(file))
    mine = [row for row in rows if row.run == run]
    if not mine:
        raise UserError(
            f"{file} has no row of the run '{run}'; it has "
            f"{', '.join(sorted({row.run for row in rows})) or 'none'}"
        )
    points = [row for group in by_protocol(mine) for row in group]
    return _card(file, {"rows": [row.model_dump() for row in points]})


def read_card(folder: Path) -> Card | None:
    """The card beside a model; None if there is none.

    Raises:
        UserError: it is not a card, naming the first row and key that are wrong.
    """
    file = Path(folder) / "card.json"
    return _read(file) if file.is_file() else None


def _read(file: Path) -> Card:
    return _card(file, read_json(file, "mend it"))


def _card(file: Path, content: Any) -> Card:
    given = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(given, list) or not given:
        raise UserError(f"{file}: key 'rows' must be a list of at least one expected row")
    rows = []
    for number, row in enumerate(given, 1):
        try:
            rows.append(Expected.model_validate(row))
        except ValidationError as error:
            raise UserError(f"{file}: rows, number {number}: {said(error)}") from error
    return Card(file, tuple(sorted(rows, key=lambda row: row.cost)), content.get("data"))


def sweep_of(
    card: Card, row: Expected, run: str, data: dict | None, out: Path, device: str | None
) -> SweepConfig:
    """The sweep of one point that measures an expected row again.

    Raises:
        UserError: a setting that the harness does not know, named with the card.
    """
    # a published folder has one set of weights, even where those are somebody's raw ones
    both = (Path(run) / "config.yaml").is_file()
    entry = {
        "run": run,
        "weights": "raw" if both and row.ema == "raw" else "ema",
        "samplers": [row.sampler],
        "steps": [row.steps],
        "guidance_scales": None if row.guidance_scale is None else [row.guidance_scale],
        "threshold": row.threshold,
        "grid": row.grid,
        "options": row.options,
        "guidance_interval": row.guidance_interval,
    }
    values = {
        "out": str(out),
        "extractor": row.extractor,
        "reference": (row.reference or "train").split()[-1],
        "n": row.n,
        "sets": row.sets,
        "bootstrap": row.resamples,
        "seed": row.seed,
        "floor": False,
        "reconstructions": False,
        "keep_samples": 0,
        "device": device,
        "data": data or card.data,
        "entries": [entry],
    }
    return parse(SweepConfig, values, str(card.file))


def verify(
    run: str,
    card: Card,
    load: Load,
    everything: bool = False,
    data: dict | None = None,
    device: str | None = None,
) -> Iterator[Verdict]:
    """Measures the cheapest row of the card again, or all of them, and yields each verdict as it is
    known.

    Raises:
        UserError: see sweep_of; or features or reference images are not those that the card was
            measured with.
    """
    for row in card.rows if everything else card.rows[:1]:
        with tempfile.TemporaryDirectory() as folder:
            (found,) = run_sweep(
                sweep_of(card, row, run, data, Path(folder) / "curves.jsonl", device), load
            )
        for key, what in (
            ("extractor_sha256", "the extractor's weights"),
            ("reference_sha256", "the reference images"),
        ):
            expected, here = getattr(row, key), getattr(found, key)
            if expected not in (None, here):
                raise UserError(
                    f"{card.file}: {key} is {expected[:12]}..., but {what} here have {here[:12]}"
                    "...: not comparable"
                )
        yield Verdict(row, found, (found.fid - row.fid) / row.fid_std)
