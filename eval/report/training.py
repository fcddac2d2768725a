"""What the report says about training: each run's config, loss by noise level and price, from its
folder and its rows."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pydantic import ConfigDict, FiniteFloat, ValidationError

from core.config import Strict
from core.errors import UserError
from core.files import read_text
from core.training.checkpoints import read_newest
from core.training.origin import Price, read_origin, read_price
from eval.curves.series import measured
from eval.rows import Row

# What a row says of its run's training
PRICE = ("run", "method", "teacher", "train_images", "train_evals", "train_seconds")
MOMENTS = 5  # points in training whose loss is shown, for runs of one stage


class Losses(Strict):
    """What is wanted of a line of metrics.jsonl."""

    model_config = ConfigDict(extra="ignore")

    images: int
    stage: str
    loss_by_t: tuple[FiniteFloat | None, ...]


def inside(runs: Path, name: str) -> Path:
    """The place in `runs` of the run that a row names. Rows may come from anywhere, and nothing
    outside `runs` is put into the page.

    Raises:
        UserError: the name leads elsewhere.
    """
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise UserError(f"run {name!r} of a row is no name of a folder in {runs}")
    return runs / name


def run_folder(runs: Path | None, name: str) -> Path | None:
    """The folder of the run that a row names, with a config.yaml that is no link; None where there
    is none."""
    try:
        folder = inside(runs, name) if runs else None
    except UserError:
        return None
    return folder if folder and _is_plain(folder / "config.yaml") else None


def _is_plain(file: Path) -> bool:
    return os.path.isfile(file) and not os.path.islink(file)


def find_runs(folder: Path, rows: list[Row]) -> Path | None:
    """The folder of the runs that `rows` name: beside the curves, else under runs/. None if there
    is none.

    Of several it is the first one with a run whose config is the measured one, else the first with
    any of the runs.
    """
    named = {row.run: row.config_sha256 for row in measured(rows)}
    dataset = rows[0].dataset
    places = [
        folder,
        Path("runs") / folder.resolve().name,
        Path("runs") / dataset,
        Path("runs/quickstart"),
    ]
    places.append(Path(f"runs/quickstart-{dataset}"))
    there = [place for place in places if any(run_folder(place, run) for run in named)]
    same = [
        place
        for place in there
        if any(_config_sha256(place, run) == sha for run, sha in named.items())
    ]
    return next(iter(same + there), None)


def _price(run: Path) -> Price | None:
    return read_newest(run, read_price)


def _config_sha256(place: Path, name: str) -> str | None:
    """None where there is no such run, or it cannot be read."""
    run = run_folder(place, name)
    try:
        price = run and _price(run)
    except (OSError, UserError):
        return None
    return price.config_sha256 if price else None


def read_configs(folder: Path, runs: Path | None, names: list[str]) -> list[dict]:
    """[{"name", "text"}]: the configs kept beside the curves, then those of the runs."""
    files = {}
    for file in sorted([*folder.glob("*.y*ml"), *folder.glob("configs/*.y*ml")]):
        if _is_plain(file):
            files[str(file.relative_to(folder))] = file
        else:
            print(
                f"warning: {file} is a link or no file; the report goes without it", file=sys.stderr
            )
    for name in names:
        if run := run_folder(runs, name):
            files[f"{name}/config.yaml"] = run / "config.yaml"
    return [{"name": name, "text": read_text(file)} for name, file in files.items()]


def _mean(columns: list[list[float | None]]) -> list[float | None]:
    """The mean of each noise level over lines of metrics.jsonl, null where no line has it."""
    kept = [[v for v in level if v is not None] for level in zip(*columns)]
    return [sum(v) / len(v) if v else None for v in kept]


def loss_by_level(run: Path) -> dict | None:
    """The run's loss by noise level at some moments of its training, and all of it over time; None
    without metrics.jsonl.

    {"moments": [{"name", "loss": [L]}], "images": [K], "levels": [K][L]}: a moment is the mean over
    the last lines of a stage, or of one of MOMENTS doublings of the images seen where there is one
    stage only.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        return None
    lines = []
    for text in read_text(file).splitlines():
        try:
            line = Losses.model_validate_json(text)
            lines.append((line.images, line.stage, line.loss_by_t))
        except ValidationError:  # cut off by a kill; the run drops it when it resumes
            continue
    if not lines:
        return None
    lines = [line for line in lines if len(line[2]) == len(lines[-1][2])]
    stages = list(dict.fromkeys(stage for _, stage, _ in lines))
    moments = []
    if len(stages) > 1:
        for stage in stages:
            of_stage = [levels for _, s, levels in lines if s == stage]
            moments.append({"name": stage, "loss": _mean(of_stage[-max(1, len(of_stage) // 3) :])})
    else:
        total = len(lines)
        for k in reversed(range(MOMENTS)):
            end = max(1, total // 2**k)
            start = min(int(end * 0.8), end - 1)
            name = f"{lines[end - 1][0]:,} images"
            if not moments or moments[-1]["name"] != name:
                moments.append(
                    {"name": name, "loss": _mean([levels for *_, levels in lines[start:end]])}
                )
    return {
        "moments": moments,
        "images": [line[0] for line in lines],
        "levels": [line[2] for line in lines],
    }


def prices(rows: list[Row], runs: Path | None) -> list[dict]:
    """What training each run has cost, its own part and that of the runs it learned from, cheapest
    first.

    Of a run that keeps a network for each number of steps, it is the dearest, which includes the
    others.
    """
    known: dict[str, dict] = {}
    for row in measured(rows):
        if row.train_evals is not None:
            if row.run not in known or known[row.run]["train_evals"] < row.train_evals:
                known[row.run] = {key: getattr(row, key) for key in PRICE}
    own = list(known)
    missing = [one["teacher"] for one in known.values() if one["teacher"] not in known]
    while missing:  # teachers that were not measured themselves
        name = missing.pop()
        run = run_folder(runs, name) if name and name not in known else None
        if run and (price := _price(run)):
            known[name] = {
                "run": name,
                "method": read_origin(run).method.name,
                "teacher": price.teacher,
            }
            known[name] |= {
                f"train_{key}": getattr(price, key) for key in ("images", "evals", "seconds")
            }
            missing.append(price.teacher)
    for one in known.values():
        chain, name = [], one["teacher"]
        while name and name not in chain and name != one["run"]:
            chain.append(name)
            name = known[name]["teacher"] if name in known else None
        one["chain"] = chain
        one["inherited_evals"] = sum(known[n]["train_evals"] for n in chain if n in known)
        one["complete"] = all(n in known for n in chain)
        one["measured"] = one["run"] in own
    return sorted(known.values(), key=lambda one: one["train_evals"] + one["inherited_evals"])
