"""The shell recipes, with a stand-in for python that writes down what it is asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A virtual environment appears where one is asked for.
PYTHON = """#!/usr/bin/env bash
echo "$* ${SHIPPED:+SHIPPED=$SHIPPED}" >> "$LOG"
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "echo active >> $LOG" > "$3/bin/activate"
fi
exit ${CODE:-0}
"""


class Shell:
    """Runs bash lines at the repository's root; the lines that python got are in `log`."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "log"
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_text(PYTHON)
        (folder / "bin" / "python").chmod(0o755)

    def __call__(self, script: str, **environment: str) -> subprocess.CompletedProcess:
        self.file.write_text("")
        given = {k: v for k, v in os.environ.items() if k not in ("VENV", "SHIPPED", "RUNS", "OUT")}
        given["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        given |= {"LOG": str(self.file), "VENV": "none"} | environment
        return subprocess.run(
            ["bash", "-c", script, "scripts/x"], cwd=ROOT, env=given, capture_output=True, text=True
        )

    @property
    def log(self) -> list[str]:
        return [line.strip() for line in self.file.read_text().splitlines()]


@pytest.fixture
def shell(tmp_path) -> Shell:
    return Shell(tmp_path)


def test_train_is_the_recipe(shell):
    done = shell("bash scripts/train.sh digits vae 'run=my runs/x' --dry-run", CODE="7")
    assert done.returncode == 7
    assert shell.log == ["-m scripts.recipe digits vae run=my runs/x --dry-run"]


@pytest.mark.parametrize(
    ("given", "dataset", "curve", "runs", "shipped"),
    [
        ("", "digits", "quickstart", "runs/quickstart", " SHIPPED=no"),
        ("cifar10", "cifar10", "curve", "runs/quickstart-cifar10", ""),
    ],
)
def test_quickstart(shell, given, dataset, curve, runs, shipped):
    assert shell(f"bash scripts/quickstart.sh {given}").returncode == 0
    assert shell.log == [
        f"-m scripts.recipe {dataset} --for {curve} --lanes 2{shipped}",
        f"-m scripts.recipe {dataset} {curve}{shipped}",
        f"-m scripts.plot {runs}/curves.jsonl --markdown {runs}/table.md "
        f"--relative-to teacher{shipped}",
        f"-m scripts.report {runs}{shipped}",
    ]
    assert shell("bash scripts/quickstart.sh", CODE="3").returncode == 3 and len(shell.log) == 1


def test_suite_trains_and_measures_all(shell, tmp_path):
    """With Inception's weights where a sweep of the data set takes them, and publishes."""
    for dataset in ("digits", "fashion_mnist"):
        done = shell(f"bash scripts/suite.sh {dataset}", OUT=str(tmp_path / "results"), RUNS="x")
        assert done.returncode == 0, done.stderr
        log = [line.removesuffix(" SHIPPED=no").removeprefix("-m scripts.") for line in shell.log]
        assert log[0] == f"recipe {dataset} --all --lanes 2"
        assert log[-2:] == [f"recipe {dataset} --sweeps", f"publish x {tmp_path / 'results'}"]
        assert log[1:-2] == (["fetch_inception"] if dataset == "fashion_mnist" else [])


@pytest.mark.parametrize(
    ("script", "what"), [("quickstart.sh", "--for quickstart"), ("suite.sh", "--all")]
)
def test_overrides_are_not_lost_without_a_word(shell, script, what):
    """The recipe gets them, and refuses them beside --all and --for."""
    shell(f"bash scripts/{script} fashion_mnist budget.evals=5", CODE="2")
    (line,) = shell.log
    assert line.endswith(f"{what} --lanes 2 budget.evals=5")


def test_an_interrupted_environment_is_made_again(shell, tmp_path):
    """bin/python is the first that venv writes, bin/activate the last."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(PYTHON)
    script = "source scripts/environment.sh; use_environment requirements.txt"
    done = shell(script, VENV=str(venv), PYTHON="python")
    assert done.returncode == 0, done.stderr
    made, active, installed = shell.log
    assert made == f"-m venv {venv}" and active == "active" and "pip install" in installed
    assert shell(script, VENV=str(venv), PYTHON="python").returncode == 0
    assert shell.log == ["active"]
