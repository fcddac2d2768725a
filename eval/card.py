"""card.json beside a shipped model: rows as the harness writes them, and whether they are met when
measured again.

    {"data": {"name": "digits"}, "rows": [{"sampler": "ddim", "steps": 16, "n": 300, "seed": 0,
    "extractor": "digits-cnn",
     "fid": 2.59, "fid_std": 0.57, "fid_error": "3 sets", ...}]}

`data` is needed where the run does not know what it was trained on. Other keys, of the card and of
its rows, are the author's.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.config import parse
from core.errors import UserError
from core.files import read_text
from core.runs import Load
from eval.rows import by_protocol, is_floor, read_rows
from eval.sweep.config import SweepConfig
from eval.sweep.run import run_sweep

NEEDED = ("sampler", "steps", "n", "seed", "extractor", "fid", "fid_std")
WORST = 4.0  # standard deviations


@dataclass(frozen=True)
class Card:
    """The expected rows of a card, cheapest first, and its data section if it has one."""

    file: Path
    rows: tuple[dict, ...]
    data: dict | None


@dataclass(frozen=True)
class Verdict:
    """expected and measured rows; deviations: (measured - expected) / fid_std, positive where it is
    worse."""

    expected: dict
    measured: dict
    deviations: float

    @property
    def worse(self) -> bool:
        return self.deviations > WORST

    @property
    def other_weights(self) -> str | None:
        """The sha256 of the weights that were expected, where others were measured."""
        expected = self.expected.get("weights_sha256")
        return expected if expected not in (None, self.measured["weights_sha256"]) else None

    def __str__(self) -> str:
        e, m = self.expected, self.measured
        agrees = f"{abs(self.deviations):.2f} standard deviations {'worse' if self.deviations > 0 else 'better'}"
        asked = f"{e['sampler']} x{e['steps']}, n = {e['n']}, {e['extractor']}"
        verdict = (
            f"more than {WORST:g}: NOT what its card says" if self.worse else "as its card says"
        )
        return f"{asked}: {m['metric']} {m['fid']:.4g}, the card {e['fid']:.4g} ± {e['fid_std']:.2g}: {agrees}, {verdict}"


def images_of(row: dict) -> int:
    """Images that measuring the row again takes."""
    return row["n"] * _sets(row)


def _sets(row: dict) -> int:
    match = re.fullmatch(r"(\d+) sets", row.get("fid_error") or "")
    return int(match[1]) if match else 1


def _bootstrap(row: dict) -> int:
    match = re.fullmatch(r"(?:stratified )?bootstrap (\d+)", row.get("fid_error") or "")
    return int(match[1]) if match else 20


def read_rows_as_card(file: Path, run: str) -> Card:
    """A card that lies anywhere, or the rows of a curves file (.jsonl) that were measured on the
    run of that name: where a point was measured again, the last.

    Raises:
        UserError: no such file, no such row, or not a card.
    """
    if not file.is_file():
        raise UserError(
            f"{file} does not exist: give a file like card.json, or rows of scripts.evaluate (.jsonl)"
        )
    if file.suffix != ".jsonl":
        return _read(file)
    rows = [row for row in read_rows(file) if not is_floor(row)]
    mine = [row for row in rows if row["run"] == run]
    if not mine:
        raise UserError(
            f"{file} has no row of the run '{run}'; it has {', '.join(sorted({row['run'] for row in rows}))}"
        )
    return _checked(file, {"rows": [row for group in by_protocol(mine) for row in group]})


def read_card(folder: Path) -> Card | None:
    """The card beside a model; None if there is none.

    Raises:
        UserError: it is not a card, naming the first row and key that are wrong.
    """
    file = Path(folder) / "card.json"
    return _read(file) if file.is_file() else None


def _read(file: Path) -> Card:
    try:
        content = json.loads(read_text(file))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): mend it") from error
    return _checked(file, content)


def _checked(file: Path, content: dict) -> Card:
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("rows"), list)
        or not content["rows"]
    ):
        raise UserError(f"{file}: key 'rows' must be a list of at least one expected row")
    for number, row in enumerate(content["rows"], 1):
        for key in NEEDED:
            if not isinstance(row, dict) or key not in row:
                raise UserError(f"{file}: rows, number {number}: key '{key}' is missing")
        if not isinstance(row["fid_std"], (int, float)) or not row["fid_std"] > 0:
            raise UserError(
                f"{file}: rows, number {number}: fid_std = {row['fid_std']!r}: a number above 0, or nothing can be compared"
            )
    rows = sorted(
        content["rows"], key=lambda row: (row.get("nfe") or row["steps"]) * images_of(row)
    )
    return Card(file, tuple(rows), content.get("data"))


def sweep_of(
    card: Card, row: dict, run: str, data: dict | None, out: Path, device: str | None
) -> SweepConfig:
    """The sweep of one point that measures an expected row again.

    Raises:
        UserError: a setting that the harness does not know, named with the card.
    """
    reference = str(row.get("reference") or "train").split()[-1]
    both = (
        Path(run) / "config.yaml"
    ).is_file()  # a published folder has one set of weights, be it somebody's raw ones
    entry = {
        "run": run,
        "weights": "raw" if both and row.get("ema") == "raw" else "ema",
        "samplers": [row["sampler"]],
        "steps": [row["steps"]],
        "guidance_scales": [
            1.0 if row.get("guidance_scale") is None else float(row["guidance_scale"])
        ],
        "threshold": row.get("threshold") or "none",
        "grid": row.get("grid"),
    }
    values = {
        "out": str(out),
        "extractor": row["extractor"],
        "reference": reference,
        "n": row["n"],
        "sets": _sets(row),
        "bootstrap": _bootstrap(row),
        "seed": row["seed"],
        "floor": False,
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
            (measured,) = run_sweep(
                sweep_of(card, row, run, data, Path(folder) / "curves.jsonl", device), load
            )
        for key, what in (
            ("extractor_sha256", "the extractor's weights"),
            ("reference_sha256", "the reference images"),
        ):
            if row.get(key) not in (None, measured[key]):
                raise UserError(
                    f"{card.file}: {key} is {row[key][:12]}..., but {what} here have {measured[key][:12]}...: not comparable"
                )
        yield Verdict(row, measured, (measured["fid"] - row["fid"]) / row["fid_std"])
