"""One training of a study with its measuring, in a process of its own. scripts.ablate starts it;
by hand the same command goes on.

    python -m scripts.ablate_cell runs/digits/ablations/STUDY/cells/RUN.yaml"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout  # PyTorch depends on it

from core.config import Strict, parse, read_config
from core.errors import command_line, in_words, reason
from core.files import write_text
from core.training.config import RunConfig
from core.training.trainer import TrainingDiverged
from eval.ablation.cells import Note, Trial, read_note, write_note
from eval.curves_file import read_rows
from eval.sweep.config import SweepConfig
from eval.sweep.run import run_sweep
from lab import load
from scripts.train import resolved, train


class Task(Strict):
    """What is to be done, as it lies on disk: a study's file may change in the meantime."""

    note: str
    """what comes of it"""
    sweep: SweepConfig
    """what is measured"""
    run: dict
    """the config of the run"""


def task_file(trial: Trial) -> Path:
    return trial.note.with_suffix(".yaml")


def write_task(trial: Trial, config: RunConfig) -> Path:
    """Puts on disk what `run_task` needs."""
    task = Task(note=str(trial.note), sweep=trial.sweep, run=config.model_dump(mode="json"))
    dumped = task.model_dump(mode="json", serialize_as_any=True)
    dumped["run"] = config.model_dump(mode="json", serialize_as_any=True)
    write_text(task_file(trial), yaml.safe_dump(dumped, sort_keys=False))
    return task_file(trial)


def run_task(file: Path) -> None:
    """Trains, measures and leaves a note, of failure too. What is done already is not done again.
    Waits where another study is at the same run.

    Raises:
        UserError and whatever else training raises, after it was noted.
    """
    task = parse(Task, read_config(file), str(file))
    note, config = Path(task.note), resolved(task.run, str(file))
    folder = Path(config.run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _turn(folder):
        found = read_note(note, task.sweep)
        if found and not found.failed:
            return
        try:
            train(config, cpu=task.sweep.device == "cpu")
            rows = run_sweep(task.sweep, load)
        except Exception as error:
            words = in_words(error) or f"{type(error).__name__}: {reason(error)}"
            diverged = isinstance(error, TrainingDiverged)
            write_note(note, task.sweep, Note(failed=words, diverged=diverged))
            raise
        # The rows as they are on disk: of a row that was measured before, its first measurement
        kept = {row.key: row for row in read_rows(Path(task.sweep.out))}
        write_note(note, task.sweep, Note(tuple(kept[row.key] for row in rows)))


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """While the block runs no other study is at the same run; waits where one is."""
    lock = FileLock(folder.with_name(f".{folder.name}.study.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder}: waiting for another process that trains it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _end_with_parent() -> None:
    """Ends this process, at a checkpoint, when the one that started it is gone, as after kill -9:
    nobody else looks after it, and the same command will want its run."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.ablate_cell",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", type=Path, help="a file that scripts.ablate wrote")
    file = parser.parse_args().task
    _end_with_parent()
    run_task(file)


if __name__ == "__main__":
    main()
