"""Interruption: a signal asks for a checkpoint instead of ending the process at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

# What Ctrl-C, `kill`, and Slurm (before the end of a job, if asked to; submitit asks for SIGUSR2,
# which reaches every process of the job) send
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Interruption:
    """wanted: whether a signal has come."""

    def __init__(self) -> None:
        self.wanted = False

    def _note(self, number: int, frame: object) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        self.wanted = True


@contextmanager
def noted_signals() -> Iterator[Interruption]:
    """Within the block signals are noted; outside of a main thread, where that cannot be, they work
    as ever."""
    interruption, old = Interruption(), {}
    try:
        for number in SIGNALS:
            old[number] = signal.signal(number, interruption._note)
    except ValueError:  # not the main thread
        pass
    try:
        yield interruption
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
