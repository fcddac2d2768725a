"""The shell recipes themselves, with stand-ins for python and nproc that write down what they are
asked for."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# A run appears where training was asked for, the last run= counting, as for scripts.train; a
# virtual environment likewise.
PYTHON = """#!/usr/bin/env bash
echo "threads=${OMP_NUM_THREADS:-none} $*" >> "$LOG"
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "echo active >> $LOG" > "$3/bin/activate"; fi
if [ "$1 $2" = "-m scripts.train" ]; then
    for given in "$@"; do case $given in run=*) run=${given#run=} ;; esac; done
    mkdir -p "$run" && touch "$run/config.yaml"
fi
"""
NPROC = """#!/usr/bin/env bash
echo "${OMP_NUM_THREADS:-4}"
"""  # the real one obeys this variable too


class Shell:
    """Runs bash lines at the repository's root; the lines that python got are in `log`."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "log"
        (folder / "bin").mkdir()
        for name, text in (("python", PYTHON), ("nproc", NPROC)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def __call__(self, script: str, **environment: str) -> subprocess.CompletedProcess:
        self.file.write_text("")
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        inherited = {
            key: value
            for key, value in os.environ.items()
            if key not in ("OMP_NUM_THREADS", "VENV", "SHIPPED")
        }
        given = inherited | {
            "PATH": path,
            "LOG": str(self.file),
            "VENV": "none",
            "RUNS": str(self.folder / "my runs"),
        }
        return subprocess.run(
            ["bash", "-c", script, "scripts/x"], cwd=ROOT, env=given | environment, capture_output=True, text=True
        )  # fmt: skip

    @property
    def log(self) -> list[str]:
        lines = self.file.read_text().replace(str(self.folder / "my runs"), "RUNS").splitlines()
        return [line for line in lines if " -c " not in line]


@pytest.fixture
def shell(tmp_path) -> Shell:
    return Shell(tmp_path)


def test_two_processes_measure_and_share_the_cores(shell):
    """Also where the number of threads is set for what went before."""
    want = "-m torch.distributed.run --standalone --nproc_per_node 2 -m scripts.evaluate some.yaml out=x"
    source = "source scripts/environment.sh; "
    assert shell(source + "measure some.yaml out=x").returncode == 0 and shell.log == [
        f"threads=2 {want}"
    ]
    assert shell(source + "export OMP_NUM_THREADS=1; measure some.yaml out=x").returncode == 0
    assert shell.log == [f"threads=1 {want}"]


def test_a_shipped_teacher_is_used_as_it_is(shell):
    """The one of the repository, and weights of one's own without a card."""
    for _ in range(2):
        assert shell("bash scripts/distill_consistency.sh digits").returncode == 0
        (line,) = shell.log
        assert line.endswith("consistency.yaml run=RUNS/consistency method.teacher=RUNS/teacher")
        (shell.folder / "my runs/teacher/card.json").unlink(missing_ok=True)


def test_students_start_from_the_teacher_that_is_there(shell):
    assert shell("bash scripts/train_teacher.sh cifar10 budget.images=5").returncode == 0
    (line,) = shell.log
    assert line.endswith(
        "scripts.train configs/cifar10/teacher.yaml run=RUNS/teacher budget.images=5"
    )
    for student in ("consistency", "progressive"):
        assert shell(f"bash scripts/distill_{student}.sh cifar10 optimizer.lr=1").returncode == 0
        teacher, made = shell.log
        assert teacher.endswith(
            "scripts.train RUNS/teacher/config.yaml run=RUNS/teacher"
        )  # with what it was begun with
        assert made.endswith(
            f"{student}.yaml run=RUNS/{student} method.teacher=RUNS/teacher optimizer.lr=1"
        )
        assert (
            shell(f"bash scripts/distill_{student}.sh cifar10 method.teacher=elsewhere").returncode
            == 0
        )
        (line,) = shell.log
        assert line.endswith("method.teacher=RUNS/teacher method.teacher=elsewhere")


def test_flows_start_from_the_flow_that_is_there(shell):
    assert shell("bash scripts/train_flow.sh digits optimizer.lr=1").returncode == 0
    assert shell("bash scripts/reflow.sh digits optimizer.lr=2").returncode == 0
    flow, pairs, reflow = shell.log
    assert flow.endswith("scripts.train RUNS/flow/config.yaml run=RUNS/flow")
    assert "scripts.pairs RUNS/flow --out RUNS/flow-pairs --count" in pairs
    assert reflow.endswith(
        "run=RUNS/reflow method.init=RUNS/flow method.pairs=RUNS/flow-pairs optimizer.lr=2"
    )
    assert shell("bash scripts/distill_flow.sh digits").returncode == 0
    reflow, pairs, distilled = shell.log
    assert reflow.endswith("scripts.train RUNS/reflow/config.yaml run=RUNS/reflow")
    assert (
        "scripts.pairs RUNS/reflow --out RUNS/reflow-pairs" in pairs
        and "run=RUNS/distilled-flow" in distilled
    )


def test_from_nothing_the_whole_chain_is_trained(shell):
    assert shell("bash scripts/distill_flow.sh digits").returncode == 0
    asked = [line.split(" -m ")[1].split("run=")[0].split("--out")[0].strip() for line in shell.log]
    assert asked == [
        "scripts.train configs/digits/flow.yaml",
        "scripts.pairs RUNS/flow",
        "scripts.train configs/digits/reflow.yaml",
        "scripts.pairs RUNS/reflow",
        "scripts.train configs/digits/distilled_flow.yaml",
    ]


@pytest.mark.parametrize(
    "script", ["train_baselines.sh", "quickstart.sh", "study_budget.sh", "suite.sh"]
)
def test_overrides_are_not_lost_without_a_word(shell, script):
    done = shell(f"bash scripts/{script} digits budget.evals=5")
    assert (
        done.returncode == 2
        and f"scripts/{script} takes a data set and nothing else (got 'budget.evals=5')"
        in done.stderr
    )
    assert shell.log == []


def test_suite_measures_what_the_quickstart_leaves_out(shell):
    done = shell("bash scripts/suite.sh fashion_mnist", OUT=str(shell.folder / "results"))
    assert (
        done.returncode == 2 and "curves.jsonl does not exist" in done.stderr
    )  # the stand-in measures nothing
    log = [line.split(" -m ", 1)[1] for line in shell.log]
    measured = [
        line.split("scripts.evaluate ")[1].split()[0] for line in log if "scripts.evaluate" in line
    ]
    names = ("curve", "curve-1000-images", "curve-1000-steps", "curve-inception", "solvers")
    assert measured == [f"configs/fashion_mnist/{name}.yaml" for name in names]
    assert log.index("scripts.fetch_inception") == len(log) - 3
    assert log[-1].endswith(
        "out=RUNS/solvers/curves.jsonl runs=RUNS"
    )  # beside the curve, which they would crowd
    assert {line.split("run=RUNS/")[1].split()[0] for line in log if "scripts.train" in line} == {
        "progressive", "consistency", "flow", "reflow", "distilled-flow", "ppca", "vae", "gan",
    }  # fmt: skip


def test_study_measures_every_student_it_trains(shell):
    """Each method at each budget from one teacher, side by side; the sweep names the runs that were
    trained, and no others."""
    done = shell("bash scripts/study_budget.sh fashion_mnist")
    assert done.returncode == 0, done.stderr
    trained = [
        line.split(" run=RUNS/")[-1].split()[0] for line in shell.log if "scripts.train" in line
    ]
    entries = yaml.safe_load((ROOT / "configs" / "fashion_mnist" / "budget.yaml").read_text())[
        "entries"
    ]
    assert sorted(trained) == sorted(entry["run"] for entry in entries)
    for line in shell.log[: len(trained)]:
        assert line.startswith("threads=2 ") and "method.teacher=RUNS/teacher" in line
        run = line.split(" run=RUNS/")[-1].split()[0]
        assert (
            f"configs/fashion_mnist/{run.split('-')[0]}.yaml" in line
            and f"budget.evals={run.split('-')[1]}" in line
        )
    assert (
        "scripts.evaluate configs/fashion_mnist/budget.yaml out=RUNS/curves.jsonl runs=RUNS"
        in shell.log[-2]
    )


def test_a_failing_lane_stops_the_other(shell):
    script = "source scripts/environment.sh; fails() { sleep 0.5; exit 3; }; side_by_side 'sleep 60' fails; echo on"
    started = time.monotonic()
    done = shell(script)
    assert done.returncode == 3 and done.stdout == "" and time.monotonic() - started < 20


def test_an_interrupted_environment_is_made_again(shell, tmp_path):
    """bin/python is the first that venv writes, bin/activate the last."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(PYTHON)
    script = "source scripts/environment.sh; use_environment requirements.txt"
    done = shell(script, VENV=str(venv), PYTHON="python")
    assert done.returncode == 0, done.stderr
    assert (
        shell.log[0].endswith(f"-m venv {venv}")
        and shell.log[1] == "active"
        and "pip install" in shell.log[2]
    )
    assert shell(script, VENV=str(venv), PYTHON="python").returncode == 0 and shell.log == [
        "active"
    ]
