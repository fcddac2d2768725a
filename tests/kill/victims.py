"""Command lines in processes of their own that are killed at a moment.

A process that has imported everything is forked for each: a kill then falls into the command's
work and not into ten seconds of imports.
"""

from __future__ import annotations

import mmap
import os
import runpy
import signal
import struct
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import lab

MODULES = ("scripts.train", "scripts.pairs", "scripts.evaluate", "scripts.ablate", "scripts.plot",
           "scripts.report", "core.training.trainer", "core.pairs", "sklearn.datasets", "diffusers")  # fmt: skip
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Moment(NamedTuple):
    """When a process is killed: after so many seconds, or as it is about to change files for the
    `change`-th time; never where both are None."""

    seconds: float | None = None
    change: int | None = None


NEVER = Moment()


class End(NamedTuple):
    """killed, else its exit code; seconds that it ran; changes to files that it began."""

    killed: bool
    code: int
    seconds: float
    changes: int


def import_all() -> None:
    """What children shall not have to import. Nothing is run: no thread may be there at a fork."""
    for name in MODULES:
        import_module(name)
    for name in lab.METHODS:
        lab.method_class(name)


def run(command: tuple[str, ...], log: Path, moment: Moment = NEVER) -> End:
    """`python -m MODULE ARGUMENTS` in a fork of this process; its output goes to the end of
    `log`."""
    counter, begun = mmap.mmap(-1, 8), time.monotonic()
    pid = os.fork()
    if not pid:
        _child(command, log, counter, moment.change)
    if moment.seconds is not None:
        end = begun + moment.seconds
        while time.monotonic() < end and not os.waitid(
            os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(min(0.002, max(0.0, end - time.monotonic())))
        os.kill(pid, signal.SIGKILL)  # a process that has ended does not mind
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    changes = struct.unpack("q", counter[:8])[0]
    return End(code == -signal.SIGKILL, code, time.monotonic() - begun, changes)


def _child(command: tuple[str, ...], log: Path, counter: mmap.mmap, last: int | None) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(out, stream)
        sys.addaudithook(_counting(counter, last))
        sys.argv = list(command)
        runpy.run_module(command[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001: a child must not go on with its parent's work
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _counting(counter: mmap.mmap, last: int | None):
    """An audit hook that counts changes to files, and kills its process ahead of the `last`."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, (str, Path)) or not flags & WRITING or path == os.devnull:
                return
        elif event not in CHANGES:
            return
        count += 1
        counter[:8] = struct.pack("q", count)
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook
