"""scripts.train, ended at one of its checkpoints as by a crash: python -m tests.helpers.stopped K
ARGUMENTS, also under torchrun."""

from __future__ import annotations

import runpy
import sys

from core.training.trainer import Trainer


class Stopped(Exception):
    """The run ends here."""


def save_then_stop(last: int):
    """A Trainer.save that raises Stopped after its `last`-th checkpoint."""
    original, count = Trainer.save, 0

    def save(self) -> None:
        nonlocal count
        original(self)
        count += 1
        if count == last:
            raise Stopped

    return save


if __name__ == "__main__":
    number, *arguments = sys.argv[1:]
    Trainer.save = save_then_stop(int(number))
    sys.argv = ["scripts.train", *arguments]
    try:
        runpy.run_module("scripts.train", run_name="__main__")
    except Stopped:
        pass
    else:
        sys.exit(f"the run had no {number} checkpoints")
