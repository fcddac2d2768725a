"""Jobs on a cluster, through submitit: the same jobs as in lanes, each a job of the cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from core.config import Strict, apply_overrides, parse
from core.errors import UserError, reason
from scripts.lanes import Job

POLL = 1.0  # seconds between looks at the jobs
# In a line of the script that sbatch is given: no blanks, newlines or quotes
Word = Annotated[str, Field(pattern=r"^[\w.,:+@&|*()\[\]=-]+$")]


class ClusterOptions(Strict):
    """What a job asks the cluster for: `--slurm partition=gpu,gpus=1,hours=4`."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    gpus: int | None = Field(default=None, ge=0, le=10_000)
    cpus: int | None = Field(default=None, ge=1, le=100_000)
    memory: float | None = Field(default=None, gt=0, le=1e6)
    """gigabytes"""
    hours: float = Field(default=24.0, gt=0, le=10_000)
    """after which a job is put in the queue again, and goes on"""
    at_once: int = Field(default=256, ge=1, le=1_000_000)
    """jobs that run side by side at most"""
    requeue: int = Field(default=100, ge=0, le=1_000_000)
    """times that a job may run out of its hours"""


def read_options(text: str) -> ClusterOptions:
    values = apply_overrides({}, [part for part in text.split(",") if part])
    return parse(ClusterOptions, values, "--slurm")


class CommandTask:
    """A command as submitit runs it. Before the end of its hours, or when the cluster wants the
    machine, the command is asked for a checkpoint, and the job goes back into the queue."""

    def __init__(self, command: tuple[str, ...]):
        self.command = command

    def __call__(self) -> int:
        self.process = subprocess.Popen(self.command)
        while self.process.poll() is None:
            time.sleep(0.1)
        return self.process.returncode

    def checkpoint(self) -> Any:
        """Called from within a handler of signals, where Popen.wait could wait for itself."""
        from submitit.helpers import DelayedSubmission

        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.process.pid, signal.SIGUSR1)
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(CommandTask(self.command))


def submit_jobs(
    jobs: list[Job], cluster: str, options: ClusterOptions, folder: Path
) -> dict[str, int]:
    """Runs each job once, after those that it needs, as `run_jobs` does with keep_going.

    Args:
        cluster: slurm, local (processes on this machine), or debug (one after the other in this
            process). folder: where submitit logs.

    Returns the exit codes of the jobs that failed, by name.

    Raises:
        UserError: submitit is not installed, there is no such cluster here, or it refuses a job;
            what was submitted before is cancelled.
        KeyboardInterrupt: interrupted, after all jobs were cancelled.
    """
    executor = _executor(cluster, options, folder)
    waiting, done, failed, running = list(jobs), set(), {}, {}
    try:
        while running or any(job.after <= done for job in waiting):
            ready = [job for job in waiting if job.after <= done]
            for job in ready[: options.at_once - len(running)]:
                waiting.remove(job)
                executor.update_parameters(name=job.name[:100])
                running[job.name] = _submitted(executor, job)
            for name, submitted in list(running.items()):
                if submitted.done():
                    del running[name]
                    if code := _code(submitted):
                        print(f"{name} failed ({_log(submitted, code)})", file=sys.stderr)
                        failed[name] = code
                    else:
                        done.add(name)
            if running:
                time.sleep(POLL)
    finally:
        for submitted in running.values():
            with suppress(Exception):
                submitted.cancel()
    return failed


def _executor(cluster: str, options: ClusterOptions, folder: Path) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError(f"--{cluster} needs submitit: pip install submitit") from error
    try:
        executor = submitit.AutoExecutor(
            folder=folder, cluster=cluster, **_requeue(cluster, options)
        )
    except RuntimeError as error:
        raise UserError(f"--{cluster} cannot be used here: {reason(error)}") from error
    shared = {
        "timeout_min": max(1, round(options.hours * 60)),
        "gpus_per_node": options.gpus,
        "cpus_per_task": options.cpus,
        "mem_gb": options.memory,
    }
    slurm = ("partition", "account", "qos", "constraint")
    given = shared | {f"slurm_{name}": getattr(options, name) for name in slurm}
    executor.update_parameters(**{key: v for key, v in given.items() if v is not None})
    return executor


def _submitted(executor: Any, job: Job) -> Any:
    try:
        return executor.submit(CommandTask(job.command))
    except (RuntimeError, OSError) as error:  # submitit's own, in the cluster's words
        raise UserError(f"{job.name} could not be submitted: {reason(error, 400)}") from error


def _requeue(cluster: str, options: ClusterOptions) -> dict[str, int]:
    if cluster == "debug":
        return {}
    return {f"{cluster}_max_num_timeout": options.requeue}


def _code(submitted: Any) -> int:
    """The exit code of a job that is done; 1 where the cluster lost it."""
    try:
        return submitted.result()
    except Exception:  # submitit's own, or the cluster's words for a job that it ended
        return 1


def _log(submitted: Any, code: int) -> str:
    return f"exit code {code}, see {submitted.paths.stderr}"
