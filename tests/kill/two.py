"""Kills of a training in two processes: of the launcher, and of one rank."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.kill.same import differences
from tests.kill.subjects import Subject

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
PATIENCE = 300.0  # seconds


def _start(subject: Subject, folder: Path, log: Path) -> subprocess.Popen:
    module, *arguments = subject.command(folder)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "ab") as out:
        command = [*LAUNCHER, "-m", module, *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )


def _ranks(launcher: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def _wait(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


def _wait_for_run(folder: Path, process: subprocess.Popen) -> None:
    _wait(lambda: (folder / "config.yaml").exists() or process.poll() is not None)


def _wait_until_gone(pids: list[int]) -> None:
    _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def kill_in_two(
    subject: Subject, alone: Path, folder: Path, kills: int, rng: random.Random, tally: Counter
) -> Counter:
    """Kills the launcher and a rank in turn, at a random moment after the run's folder is there."""
    log = folder.with_suffix(".log")
    process = _start(subject, folder, log)
    _wait_for_run(folder, process)
    begun = time.monotonic()
    process.wait(PATIENCE)
    seconds = time.monotonic() - begun  # of them some are the processes' end
    if process.returncode:
        raise SystemExit(f"{subject.name} in two processes failed: {log.read_text()[:20_000]}")
    folder.rename(alone)
    while tally["kills"] < kills:
        shutil.rmtree(folder, ignore_errors=True)
        victim = "launcher" if tally["kills"] % 2 == 0 else "rank"
        process, delay = _start(subject, folder, log), rng.uniform(0, seconds)
        _wait_for_run(folder, process)
        time.sleep(delay)
        ranks = _ranks(process.pid)
        if process.poll() is not None or not ranks:
            process.wait(PATIENCE)
            continue
        os.kill(process.pid if victim == "launcher" else rng.choice(ranks), signal.SIGKILL)
        tally["kills"] += 1
        process.wait(PATIENCE)
        _wait_until_gone(ranks)
        code = _start(subject, folder, log).wait(PATIENCE)
        found = differences(alone, folder) if code == 0 else [log.read_text()[-20_000:]]
        tally["resumed"] += code == 0
        tally["losses"] += code != 0
        tally["differences"] += code == 0 and bool(found)
        tally.lines += [f"two {subject.name}, {victim} after {delay:.2f} s: {f}" for f in found]
    return tally
