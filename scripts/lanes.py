"""Jobs as processes of their own, several at a time, each once those that it needs are done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

GRACE = 40.0  # seconds; torchrun takes up to 30 to end its own children, which are in other groups


@dataclass(frozen=True)
class Job:
    """A command that begins when the jobs named in `after` are done.

    sharers: how many processes share the cores while it runs (None: as many as there are lanes)."""

    name: str
    command: tuple[str, ...]
    after: frozenset[str] = frozenset()
    sharers: int | None = None


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(jobs: list[Job], lanes: int = 1, keep_going: bool = False) -> dict[str, int]:
    """Runs each job once, up to `lanes` at a time, the first of `jobs` first. Lanes share the cores
    out (unless OMP_NUM_THREADS says otherwise) and have a line for a progress bar each.

    Args:
        keep_going: a job that fails stops no other but those that come after it.

    Returns the exit codes of the jobs that failed, by name.

    Raises:
        SystemExit: a job failed; with its exit code, after all others were stopped.
        KeyboardInterrupt: interrupted or terminated, after all were stopped.
    """
    waiting, done, failed = list(jobs), set(), {}
    running: dict[int, tuple[Job, subprocess.Popen]] = {}
    with _noted_signals() as signals:
        try:
            while running or any(job.after <= done for job in waiting):
                for lane in set(range(lanes)) - running.keys():
                    if job := next((job for job in waiting if job.after <= done), None):
                        waiting.remove(job)
                        running[lane] = job, _start(job, lane, lanes)
                time.sleep(0.05)
                if signals:
                    raise KeyboardInterrupt
                for lane, (job, process) in list(running.items()):
                    if code := process.poll():
                        code = code if code > 0 else 128 - code
                        print(f"{job.name} failed (exit code {code})", file=sys.stderr)
                        if not keep_going:
                            raise SystemExit(code)
                        failed[job.name] = code
                        del running[lane]
                    elif code == 0:
                        del running[lane]
                        done.add(job.name)
        finally:
            _stop([process for _, process in running.values()])
    return failed


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Yields a list that interrupting signals are added to instead of taking effect, since one that
    came between the start of a process and its entry in a table would orphan it. Signals that are
    ignored, as under nohup, stay ignored."""
    noted: list[int] = []
    known = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    old = {s: signal.getsignal(s) for s in known if signal.getsignal(s) != signal.SIG_IGN}
    for number in old:
        signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _start(job: Job, lane: int, lanes: int) -> subprocess.Popen:
    environment = dict(os.environ)
    sharers = job.sharers or lanes
    if sharers > 1 or job.sharers:  # torchrun's own choice is a single thread
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // sharers)))
    if lanes > 1:
        environment["TQDM_POSITION"] = str(lane)
    # In a group of its own, so that its children can be stopped with it
    return subprocess.Popen(job.command, env=environment, start_new_session=True)


def _stop(processes: list[subprocess.Popen]) -> None:
    """Ends the processes' groups: politely, and after GRACE for good."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
        for process in processes:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
        end = time.monotonic() + patience
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
