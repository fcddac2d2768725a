"""What the report says about training: each run's config, loss by noise level and price, from its
folder and its rows."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from core.files import read_text
from core.training.checkpoints import latest_checkpoint
from eval.curves.series import measured
from eval.rows import Row

# What a row says of its run's training
PRICE = ("run", "method", "teacher", "train_images", "train_evals", "train_seconds")
MOMENTS = 5  # points in training whose loss is shown, for runs of one stage


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
    there = [
        place for place in places if any((place / run / "config.yaml").is_file() for run in named)
    ]
    same = [
        place
        for place in there
        if any(_config_sha256(place / run) == sha for run, sha in named.items())
    ]
    return next(iter(same + there), None)


def _price(run: Path) -> dict:
    checkpoint = latest_checkpoint(run)
    file = checkpoint / "price.json" if checkpoint else None
    return json.loads(read_text(file)) if file and file.is_file() else {}


def _config_sha256(run: Path) -> str | None:
    return _price(run).get("config_sha256")


def read_configs(folder: Path, runs: Path | None, names: list[str]) -> list[dict]:
    """[{"name", "text"}]: the configs kept beside the curves, then those of the runs."""
    files = {
        str(f.relative_to(folder)): f
        for f in sorted([*folder.glob("*.y*ml"), *folder.glob("configs/*.y*ml")])
    }
    for name in names:
        file = runs / name / "config.yaml" if runs else None
        if file and file.is_file():
            files[f"{name}/config.yaml"] = file
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
            line = json.loads(text)
            lines.append((line["images"], line["stage"], line["loss_by_t"]))
        except (
            ValueError,
            KeyError,
            TypeError,
        ):  # cut off by a kill; the run drops it when it resumes
            continue
    if not lines:
        return None
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
        if name and name not in known and runs and (price := _price(runs / name)):
            config = yaml.safe_load(read_text(runs / name / "config.yaml"))
            known[name] = {
                "run": name,
                "method": config["method"]["name"],
                "teacher": price["teacher"],
            }
            known[name] |= {f"train_{key}": price[key] for key in ("images", "evals", "seconds")}
            missing.append(price["teacher"])
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
