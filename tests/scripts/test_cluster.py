"""Jobs through submitit, as processes that note down when they begin and end, and as a study whose
cell is put back into the queue halfway."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from core.errors import UserError
from scripts import cluster
from scripts.cluster import ClusterOptions, CommandTask, read_options, submit_jobs
from scripts.lanes import Job
from tests.helpers.command_lines import ROOT, refused
from tests.helpers.runs import assert_same_bits
from tests.helpers.study import run_here, write_study

submitit = pytest.importorskip("submitit")
NOTE = "import sys; print(sys.argv[1], file=open(sys.argv[2], 'a')); sys.exit(int(sys.argv[3]))"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cluster, "POLL", 0.05)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))


def job(name: str, log: Path, code: int = 0, after: str = "") -> Job:
    command = (sys.executable, "-c", NOTE, name, str(log), str(code))
    return Job(name, command, frozenset(after.split()))


@pytest.mark.parametrize("kind", ["debug", "local"])
def test_jobs_run_once_after_what_they_need_and_failures_stop_nothing_else(tmp_path, kind, capfd):
    log = tmp_path / "log"
    jobs = [
        job("next", log, after="first"),
        job("first", log),
        job("bad", log, code=3),
        job("never", log, after="bad"),
    ]
    assert submit_jobs(jobs, kind, ClusterOptions(), tmp_path / "jobs") == {"bad": 3}
    lines = log.read_text().split()
    assert sorted(lines) == ["bad", "first", "next"] and lines.index("first") < lines.index("next")
    assert "bad failed (exit code 3, see " in capfd.readouterr().err


def test_a_job_out_of_its_hours_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    """submitit's signal comes in the middle of training: the cell writes a checkpoint, the job is
    queued again, and the study ends as one left alone."""
    file = write_study(tmp_path, images=3_200, seeds=[0])
    changes = ("log.checkpoint_every=100000", "axes.optimizer.lr=[1e-3,2e-3]")
    table = run_here(file, *changes)
    monkeypatch.setenv("RUNS", str(tmp_path / "cluster"))
    runs, seen = tmp_path / "cluster" / "ablations", []

    def interrupt() -> None:
        """As the cluster does: the signal goes to the task, whose parent is the job."""
        while not list(runs.glob("ddpm-*/metrics.jsonl")):
            time.sleep(0.05)
        (job,) = (p.name.split("_")[0] for p in (tmp_path / "jobs").glob("*_submitted.pkl"))
        task = int(subprocess.check_output(["pgrep", "-P", job]))
        os.kill(task, signal.SIGUSR2)
        while not (found := list(runs.glob("ddpm-*/checkpoints/[0-9]*"))):
            time.sleep(0.02)
        seen.extend(checkpoint.name for checkpoint in found)

    def runner(jobs: list[Job]) -> dict[str, int]:
        threading.Thread(target=interrupt, daemon=True).start()
        return submit_jobs(jobs[:1], "local", ClusterOptions(), tmp_path / "jobs")

    assert "1 of 2 trainings done" in run_here(file, *changes, runner=runner)
    (run,) = runs.glob("ddpm-*")
    assert 0 < int(seen[0].split("-")[0]) < 3_200
    assert_same_bits(run, tmp_path / "runs" / "ablations" / run.name)
    assert run_here(file, *changes) == table


def test_the_task_that_goes_back_is_the_same_command():
    task = CommandTask(("true",))
    assert task() == 0
    delayed = task.checkpoint()  # its process is gone already
    assert delayed.function.command == ("true",) and not hasattr(delayed.function, "process")
    assert CommandTask((sys.executable, "-c", "raise SystemExit(7)"))() == 7


def test_options_are_read_strictly(tmp_path):
    options = read_options("partition=gpu,gpus=1,hours=4")
    assert (options.partition, options.gpus, options.hours) == ("gpu", 1, 4)
    assert read_options("") == ClusterOptions()
    with pytest.raises(UserError, match=r"--slurm: unknown key 'gpu' \(did you mean 'gpus'\?\)"):
        read_options("gpu=1")
    for wrong in ("gpus=-1", "cpus=0", "memory=0", "memory=1e400", "hours=0", "hours=.nan",
                  "at_once=0", "at_once=-1", "requeue=-1", "partition=a b", "qos=a;b",
                  "constraint='a\nb'", "partition=\"$(id)\""):  # fmt: skip
        with pytest.raises(UserError, match=wrong.split("=")[0]):
            read_options(wrong)
    assert read_options("constraint=a100|h100&nvlink*4,at_once=1,cpus=1").at_once == 1
    file = str(write_study(tmp_path))
    assert "is not of the form key=value" in refused(tmp_path, "ablate", file, "--slurm", "gpu")


def test_a_cluster_that_refuses_a_job_is_heard_and_the_others_are_cancelled(tmp_path, monkeypatch):
    """sbatch is here, and knows no partition of that name."""
    cancelled = []

    class Refusing(submitit.LocalExecutor):
        def submit(self, task):
            if "second" in task.command[3]:
                raise submitit.core.utils.FailedJobError("sbatch: error:\n invalid partition")
            job = super().submit(task)
            monkeypatch.setattr(job, "cancel", lambda: cancelled.append(job))
            return job

    monkeypatch.setattr(cluster, "_executor", lambda *_: Refusing(folder=tmp_path / "jobs"))
    log = tmp_path / "log"
    with pytest.raises(UserError, match="second could not be submitted: sbatch: error: invalid"):
        submit_jobs([job("first", log), job("second", log)], "slurm", ClusterOptions(), tmp_path)
    assert len(cancelled) == 1


def test_without_slurm_or_submitit_one_line_says_so(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--slurm cannot be used here"):
        monkeypatch.setenv("PATH", "")
        submit_jobs([], "slurm", ClusterOptions(), tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="--slurm needs submitit: pip install submitit"):
        submit_jobs([], "slurm", ClusterOptions(), tmp_path)
