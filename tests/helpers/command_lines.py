"""The command lines, run in this process."""

from __future__ import annotations

import io
import runpy
import sys
from contextlib import redirect_stderr
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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
