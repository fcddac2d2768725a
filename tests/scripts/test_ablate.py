"""Studies from file to table: in this process, in lanes, and killed at random moments."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from core.errors import UserError
from core.training.checkpoints import latest_checkpoint
from eval.curves_file import read_rows
from lab import measure
from scripts.ablate import read_plan
from scripts.ablate_plan import plan_words
from scripts.lanes import Job
from tests.helpers.command_lines import ROOT, refused, run_process, run_script, tree, wait_for
from tests.helpers.runs import assert_same_bits
from tests.helpers.small_sweep import MACHINE, config
from tests.helpers.study import in_this_process, run_here, write_study

DIVERGES = {"optimizer.lr": [1e-3, 1e30]}


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def rows_of(out: Path) -> list[dict]:
    """Its rows but for what machines differ in, and folders: they are in the hash of the config."""
    return [
        row.model_dump(exclude={*MACHINE, "train_seconds", "config_sha256"})
        for row in read_rows(out / "curves.jsonl")
    ]


def test_a_study_in_two_lanes_is_the_study_in_one(tmp_path, runs, monkeypatch):
    """As commands, with a cell that diverges and one that cannot be: tables are the same to the
    bit, and so are the runs."""
    axes = {**DIVERGES, "ema.half_life": [320, 0]}
    file = write_study(tmp_path, axes=axes, seeds=[0, 1])
    table = run_here(file)
    assert "diverged: the loss became NaN or infinite at 64 images" in table
    assert "impossible" in table and "ema.half_life: Input should be greater than 0" in table
    assert "2 of 8 trainings done" in table
    cell = next(line for line in table.splitlines() if line.startswith("| 0.001 | 320 |"))
    assert " | 2 | " in cell and "±" in cell
    monkeypatch.setenv("RUNS", str(tmp_path / "lanes"))
    done = run_process("ablate", str(file), "--lanes", "2")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "lanes" / "ablations" / "study"
    assert (out / "table.md").read_text() == table
    assert rows_of(out) == rows_of(runs / "ablations" / "study")
    assert table in done.stdout.decode() and b"2 trainings" not in done.stdout
    for run in sorted((runs / "ablations").glob("ddpm-*")):
        if latest_checkpoint(run):
            assert_same_bits(run, tmp_path / "lanes" / "ablations" / run.name)


def test_rows_say_which_training_and_which_noise(tmp_path, runs):
    run_here(write_study(tmp_path, seeds=[3, 4]), "sweep.seed=10")
    found = {
        (r.run[-5:], r.train_seed, r.seed) for r in read_rows(next(runs.rglob("study/*.jsonl")))
    }
    assert found == {("seed3", 3, 13), ("seed4", 4, 14)}


def test_what_two_studies_share_is_trained_once(tmp_path, runs):
    """The second has one cell of the first, measured at another number of steps besides."""
    first = write_study(tmp_path, "first")
    run_here(first)
    stamps = {file: file.stat().st_mtime_ns for file in runs.rglob("*.safetensors")}
    assert len(stamps) == 4
    second = write_study(tmp_path, "second", axes={"optimizer.lr": [1e-2, 1e-1]})
    table = run_here(second, "sweep.steps=[1,3]")
    assert "2 of 2 trainings done" in table and "3 steps" in table
    after = {file: file.stat().st_mtime_ns for file in runs.rglob("*.safetensors")}
    assert stamps.items() <= after.items() and len(after) == 6
    shared = [r for r in read_rows(runs / "ablations/second/curves.jsonl") if r.steps == 1]
    before = read_rows(runs / "ablations/first/curves.jsonl")
    assert shared[0] in before and shared[1] not in before  # measured once, too


def test_cells_that_are_sampled_otherwise_share_their_training(tmp_path, runs):
    """Each is measured as a sweep of its own measures it, and a plan counts the training once."""
    axes = {"sweep.weights": ["raw", "half-life 100"]}
    file = write_study(tmp_path, images=640, axes=axes, seeds=[0, 1], snapshots={"every": 64})
    planned = read_plan(file, [])
    assert "in all: 2 trainings, 1,280 images" in plan_words(planned.study, [], planned.runs)
    table = run_here(file)
    assert "2 of 2 trainings done" in table and "sweep.weights: " in table
    folders = sorted((runs / "ablations").glob("ddpm-*"))
    assert len(folders) == 2 and len(list(runs.rglob("study/cells/*.json"))) == 4
    rows = read_rows(runs / "ablations/study/curves.jsonl")
    assert [r.ema for r in rows[::2]] == ["raw", "post-hoc half-life 100"] * 2
    again = config(folders[1], tmp_path / "again.jsonl", str(tmp_path / "cache"), seed=1, floor=False,
                   entry={"samplers": ["ddim"], "steps": [1], "weights": "half-life 100"})  # fmt: skip
    (row,) = measure(again)
    assert row.fid in [r.fid for r in rows if r.run == folders[1].name and r.ema == row.ema]
    assert run_here(file, runner=lambda jobs: {"begun": 1} if jobs else {}) == table
    with pytest.raises(UserError, match="may not be sweep.steps: of the sweep sweep.weights, "):
        read_plan(write_study(tmp_path, "bad", axes={"sweep.steps": [[1], [2]]}), [])


def test_what_is_done_is_not_begun_again(tmp_path, runs):
    """Nor what diverged, without --retry; a run that was deleted is made again."""
    file = write_study(tmp_path, axes=DIVERGES)
    begun: list[str] = []

    def noting(jobs: list[Job]) -> dict[str, int]:
        begun.extend(job.name for job in jobs)
        return in_this_process(jobs)

    table = run_here(file, runner=noting)
    assert len(begun) == 2
    assert run_here(file, runner=noting) == table and len(begun) == 2
    assert run_here(file, runner=noting, retry=True) == table
    assert len(begun) == 3 and begun[2] == begun[1]
    shutil.rmtree(runs / "ablations" / begun[0])
    assert run_here(file, runner=noting) == table
    assert len(begun) == 4 and begun[3] == begun[0]


def test_a_process_that_is_killed_is_reported_and_tried_again(tmp_path):
    file = write_study(tmp_path)

    def half(jobs: list[Job]) -> dict[str, int]:
        return in_this_process(jobs[:1]) | {job.name: 137 for job in jobs[1:]}

    table = run_here(file, runner=half)
    assert "failed: its process ended with exit code 137" in table
    assert "## Failed" not in run_here(file)


def test_a_crash_of_one_cell_is_a_row(tmp_path, monkeypatch):
    """Also one that is no mistake of the user."""

    def train(config, cpu):
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr("scripts.ablate_cell.train", train)
    file = write_study(tmp_path)

    def catching(jobs: list[Job]) -> dict[str, int]:
        for job in jobs:
            with pytest.raises(ZeroDivisionError):
                in_this_process([job])
        return {job.name: 1 for job in jobs}

    assert "failed: ZeroDivisionError: by accident" in run_here(file, runner=catching)
    assert "0 of 2 trainings done" in run_here(file, runner=lambda jobs: {})


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sweep.extractor=digit-cnn", "unknown extractor 'digit-cnn' (did you mean 'digits-cnn'?)"),
        ("sweep.extractor=[digits-cnn,fashion-cnn]", "fashion-cnn on digits"),
        ("data={name: folder, root: /nowhere, side: 8}", "/nowhere"),
    ],
)
def test_what_could_not_be_measured_is_refused_ahead_of_all_training(
    tmp_path, runs, override, says
):
    assert says in refused(tmp_path, "ablate", str(write_study(tmp_path)), override)
    assert not runs.exists()


def test_what_a_cell_needs_is_made_first(tmp_path, runs):
    """A shipped teacher is copied; where its making fails, the cells are not begun and say so."""
    file = write_study(tmp_path, base=str(ROOT / "configs/digits/consistency.yaml"),
                       axes={"method.weight": ["uniform", "output"]})  # fmt: skip
    code, errors = run_script("ablate", str(file), "--dry-run")
    assert code == 0, errors
    planned = read_plan(file, [])
    (step,) = planned.steps
    assert (step.job.name, step.state) == ("teacher", "teachers/shipped/digits")
    assert step.folder == runs / "teacher"
    teacher = {trial.values["method"]["teacher"] for trial in planned.study.trials}
    assert teacher == {str(runs / "teacher")}
    os.environ["SHIPPED"] = "no"
    try:
        planned_jobs: list[Job] = []

        def failing(jobs: list[Job]) -> dict[str, int]:
            planned_jobs.extend(jobs)
            return {"teacher": 3}

        table = run_here(file, runner=failing)
    finally:
        del os.environ["SHIPPED"]
    assert [job.after for job in planned_jobs] == [frozenset(), *[frozenset({"teacher"})] * 2]
    assert table.count("failed: not begun: teacher failed, which it needs") == 2


def test_the_plan_says_what_it_costs(tmp_path, runs):
    """Unknown at first; then from the seconds per evaluation of what is done."""
    file = write_study(tmp_path, seeds=[0, 1])
    code, errors = run_script("ablate", str(file), "--dry-run")
    assert code == 0 and not errors and not runs.exists()

    def words(*overrides: str) -> str:
        planned = read_plan(file, list(overrides))
        return plan_words(planned.study, planned.steps, planned.runs)

    assert words().startswith("Does the rate matter?\ncell ")
    assert "in all: 4 trainings, 768 images, time unknown" in words()
    budget = ["budget.images=null", "budget.evals=6e5"]
    assert "to do: 4 trainings, 2.4e+06 network evaluations, time unknown" in words(*budget)
    run_here(file, "seeds=[0]")
    assert "optimizer.lr=0.001  ddpm-" in words() and "0 done, 1 to do" in words()
    assert "to do: 2 trainings, 384 images" in words()
    for price in runs.rglob("price.json"):
        price.write_text(json.dumps(json.loads(price.read_text()) | {"evals": 100, "seconds": 1.0}))
        price.with_name("checksums.json").unlink()
    assert "to do: 4 trainings, 2.4e+06 network evaluations, about 6.7 h" in words(*budget)


def test_mistakes_are_one_line_and_change_nothing(tmp_path):
    file = str(write_study(tmp_path))
    assert "unknown key 'sede'" in refused(tmp_path, "ablate", file, "sede=[0]")
    assert "--lanes 0: at least 1" in refused(tmp_path, "ablate", file, "--lanes", "0")
    assert "give one of them" in refused(
        tmp_path, "ablate", file, "--slurm", "gpus=1", "--local-executor"
    )
    said = refused(tmp_path, "ablate", file, "axes.optimizer.lrr=[1,2]")
    assert "optimizer.lrr" in said and "did you mean 'lr'" in said
    assert "nofile.yaml does not exist" in refused(
        tmp_path, "ablate", str(tmp_path / "nofile.yaml")
    )


def test_a_new_user_copies_a_study_and_reads_the_answer(tmp_path, runs):
    """A shipped study copied to another name, with another axis, at a small price."""
    folder = tmp_path / "configs"
    shutil.copytree(ROOT / "configs" / "digits", folder / "digits")
    (folder / "ablations").mkdir()
    text = (ROOT / "configs" / "ablations" / "digits_flow_times.yaml").read_text()
    old = "method.time.name: [uniform, logit-normal, u-shaped]"
    assert old in text
    mine = folder / "ablations" / "mine.yaml"
    mine.write_text(text.replace(old, "optimizer.lr: [1e-3, 1e-4]"))
    small = ["budget.evals=2000", "seeds=[0,1]", "sweep.n=30", "sweep.sets=1", "sweep.steps=[1]",
             "model.network.widths=[8]", "model.network.blocks=1", "sweep.device=cpu",
             f"sweep.cache={tmp_path / 'cache'}"]  # fmt: skip
    table = run_here(mine, *small)
    assert (runs / "ablations" / "mine" / "axis-optimizer.lr.png").is_file()
    verdict = table.split("## Verdict")[1].split("##")[0]
    assert "- optimizer.lr: " in verdict and "at 1 step" in verdict
    assert "2 cells, training seeds 0 and 1: 4 of 4 trainings done. FD@30" in table


# ---------------------------------------------------------------- kills


def children_of(parent: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


def run_and_kill(file: Path, environment: dict, after: float, how: str) -> bool:
    """Starts the command and ends it after some seconds; False where it was faster."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.ablate", str(file)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        below = children_of(process.pid)
        if how == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            process.kill()
            for child in below if how == "kill all" else ():
                os.kill(child, signal.SIGKILL)
        process.wait(60)
        return True


def check_kills(tmp_path: Path, runs: Path, kills: int, images: int, seed: int) -> None:
    """A study that is killed so often at random moments ends as one that was left alone: the
    table and the rows to the bit, and the same weights."""
    axes = {"optimizer.lr": [1e-3, 1e-2]}
    file = write_study(tmp_path, images=images, axes=axes)
    table = run_here(file)
    killed = {"RUNS": str(tmp_path / "killed")}
    draw = random.Random(seed)
    for number in range(kills):
        how = ("kill", "kill all", "interrupt")[number % 3]
        if not run_and_kill(file, killed, draw.uniform(3.0, 14.0), how):
            break
    done = run_process("ablate", str(file), environment=killed)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "killed" / "ablations" / "study"
    assert (out / "table.md").read_text() == table
    assert rows_of(out) == rows_of(runs / "ablations" / "study")
    for run in sorted((runs / "ablations").glob("ddpm-*")):
        assert_same_bits(run, out.parent / run.name)
    left = {name for name in tree(out) if "partial" in name or "replaced" in name}
    assert not left


@pytest.mark.skipif(not shutil.which("pgrep"), reason="looks for children with pgrep")
def test_a_killed_study_ends_as_one_left_alone(tmp_path, runs):
    check_kills(tmp_path, runs, kills=2, images=640, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not shutil.which("pgrep"), reason="looks for children with pgrep")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_study_killed_many_times_ends_as_one_left_alone(tmp_path, runs, seed):
    check_kills(tmp_path, runs, kills=8, images=2560, seed=seed)


def test_a_cell_ends_when_the_study_is_gone(tmp_path):
    """After kill -9 of the study alone: at a checkpoint, and soon."""
    file = write_study(tmp_path, images=64 * 10_000)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    study = subprocess.Popen(
        [sys.executable, "-m", "scripts.ablate", str(file)], cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    runs = tmp_path / "runs" / "ablations"
    wait_for(lambda: list(runs.glob("ddpm-*/checkpoints/[0-9]*/price.json")), study)
    (cell,) = children_of(study.pid)
    study.kill()
    study.wait()
    try:
        wait_for(lambda: not Path(f"/proc/{cell}").exists())
    finally:
        if Path(f"/proc/{cell}").exists():
            os.kill(cell, signal.SIGKILL)
    (run,) = runs.glob("ddpm-*")
    price = json.loads((latest_checkpoint(run) / "price.json").read_text())
    assert 0 < price["images"] < 64 * 10_000


def test_a_task_is_written_whole_and_read_strictly(tmp_path, runs):
    file = write_study(tmp_path)
    run_here(file, runner=lambda jobs: {})
    task = next(runs.rglob("cells/*.yaml"))
    values = yaml.safe_load(task.read_text())
    assert values["run"]["run"].endswith(task.stem) and values["sweep"]["n"] == 30
    task.write_text(yaml.safe_dump(values | {"more": 1}))
    from scripts.ablate_cell import run_task

    with pytest.raises(UserError, match="unknown key 'more'"):
        run_task(task)
