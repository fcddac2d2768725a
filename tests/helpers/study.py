"""A study of tiny runs on digits: its file, and a study in this process."""

from __future__ import annotations

from pathlib import Path

import yaml

from core.errors import in_words
from scripts.ablate import read_plan, run_study, write_results
from scripts.ablate_cell import run_task
from scripts.lanes import Job
from tests.helpers.tiny import tiny_config

SWEEP = {
    "samplers": ["ddim"],
    "steps": [1, 2],
    "extractor": "digits-cnn",
    "n": 30,
    "bootstrap": 4,
    "device": "cpu",
}


def write_study(folder: Path, name: str = "study", images: int = 192, **changes) -> Path:
    """configs/digits/tiny.yaml in `folder`, and a study of it in configs/ablations. Checkpoints
    come every 64 images, so that a kill finds some."""
    base = folder / "configs" / "digits" / "tiny.yaml"
    base.parent.mkdir(parents=True, exist_ok=True)
    log = {"metrics_every": 64, "checkpoint_every": 64}
    base.write_text(yaml.safe_dump(tiny_config("runs/digits/tiny", images=images, log=log)))
    values = {
        "question": "Does the rate matter?",
        "base": "../digits/tiny.yaml",
        "axes": {"optimizer.lr": [1e-3, 1e-2]},
        "seeds": [0],
        "sweep": SWEEP | {"cache": str(folder / "cache")},
    } | changes
    file = folder / "configs" / "ablations" / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False)
    )
    return file


def in_this_process(jobs: list[Job]) -> dict[str, int]:
    """Runs the cells one after the other, as lanes would, without a start of Python for each."""
    failed = {}
    for job in jobs:
        try:
            run_task(Path(job.command[-1]))
        except Exception as error:
            if in_words(error) is None:
                raise
            failed[job.name] = 2
    return failed


def run_here(file: Path, *overrides: str, runner=in_this_process, retry: bool = False) -> str:
    """The table of a study that is run in this process."""
    planned = read_plan(file, list(overrides))
    write_results(run_study(planned, runner, retry), planned.out)
    return (planned.out / "table.md").read_text()
