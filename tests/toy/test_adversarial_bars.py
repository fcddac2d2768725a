"""Bars on the bench of points for students that match distributions or play against a critic: a
third of the budget of their configs, one step, against what was measured (slow)."""

from __future__ import annotations

from pathlib import Path

import pytest

import lab
from core.config import parse
from eval.sweep.config import SweepConfig
from tests.helpers.command_lines import ROOT, run_script

EVALS = "1e6"
# Config: sliced Wasserstein distance and KL that must be undercut at one step. The teacher asked
# once has 0.99 and 4.57, its best of any number of steps 0.02 and 0.24 (docs/toy.md).
BARS = {
    "dmd2": (0.08, 1.0),
    "f_distill": (0.1, 1.1),
    "f_distill_js": (0.1, 1.1),
    "sid": (0.08, 1.0),
    "add": (0.25, 1.6),
    "gan_post_training": (0.2, 1.6),
}


def _train(config: str, run: Path, *more: str) -> Path:
    file = ROOT / "configs" / "toy" / f"{config}.yaml"
    code, errors = run_script("train", str(file), f"run={run}", *more, "--cpu")
    assert code == 0, errors
    return run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return _train("teacher", tmp_path_factory.mktemp("toy") / "teacher")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("config", BARS)
def test_one_step_is_under_the_bar(config, teacher, tmp_path):
    starts = "init" if config == "gan_post_training" else "teacher"
    run = _train(config, tmp_path / config, f"method.{starts}={teacher}", f"budget.evals={EVALS}")
    setting = lab.load(run).spec.setting
    assert setting.steps == 1
    values = {
        "out": str(tmp_path / "rows.jsonl"),
        "n": 10_000,
        "extractor": ["sliced-wasserstein", "histogram-kl"],
        "bootstrap": 0,
        "floor": False,
        "batch_size": 2500,
        "entries": [{"run": str(run), "options": setting.options}],
    }
    found = {row.metric: row.fid for row in lab.measure(parse(SweepConfig, values, "test"))}
    assert found["SW2"] < BARS[config][0] and found["KL"] < BARS[config][1], found
