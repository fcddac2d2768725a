"""The command lines, run in this process or in one of their own, and a disk that is soon full."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0  # seconds for what another process does; a quiet machine needs a few


def run_script(name: str, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of `python -m scripts.NAME arguments` (or of a dotted name)."""
    errors, old = io.StringIO(), sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        with redirect_stderr(errors):
            runpy.run_module(name if "." in name else f"scripts.{name}", run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = old
    return code, errors.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(folder: Path, name: str, *arguments: str) -> str:
    """Runs the script and checks: exit code 2, one line on stderr, no file in `folder` changed.
    Returns that line."""
    before = tree(folder)
    code, errors = run_script(name, *arguments)
    assert code == 2, (code, errors)
    lines = [line for line in errors.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), errors
    assert tree(folder) == before
    return lines[0]


def run_process(name: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """`python -m scripts.NAME arguments` in a process of its own; `environment`: changes to that of
    the tests; other options as subprocess.run has them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | options.pop("environment", {})
    command = [sys.executable, "-m", f"scripts.{name}", *map(str, arguments)]
    return subprocess.run(
        command, **{"cwd": ROOT, "env": environment, "stdout": -1, "stderr": -1} | options
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Returns when the condition holds; fails where it does not in PATIENCE, or `process` has ended
    before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


@contextmanager
def small_disk(place: Path, size: str = "64k") -> Iterator[Path]:
    """A file system of that size at `place`; skips the test where none can be mounted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("only root may mount a small file system")
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def enlarge_disk(place: Path, size: str) -> None:
    """Gives a `small_disk` more room, as somebody does who has cleared up."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)
