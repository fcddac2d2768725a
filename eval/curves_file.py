"""curves.jsonl on disk: one row per line; lines are only ever appended."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout  # PyTorch depends on it

from core.errors import UserError
from core.files import append_line, check_place
from eval.rows import Row, Unmeasured, parse_row

NAMED = 5  # lines that a warning names


def read_rows(path: str | Path) -> list[Row]:
    """All complete rows of a curves file; [] if there is none.

    A last line that was cut off by a kill is left out, and so, with a warning, are rows without a
    distance.

    Raises:
        UserError: any other line that is not a row, with its number and the key.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file, for example {path / 'curves.jsonl'}")
    if not path.exists():
        return []
    rows, unmeasured = [], []
    lines = path.read_bytes().split(b"\n")
    if _torn(lines[-1]):
        lines.pop()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(parse_row(line, f"{path}, line {number}"))
            except Unmeasured:
                unmeasured.append(number)
    if unmeasured:
        named = ", ".join(map(str, unmeasured[:NAMED])) + ", ..." * (len(unmeasured) > NAMED)
        print(
            f"warning: {path}: rows left out for want of a finite fid: {len(unmeasured)} "
            f"(line {named})",
            file=sys.stderr,
            flush=True,
        )
    return rows


def read_measured(path: str | Path) -> list[Row]:
    """The rows of a curves file that must be there and hold a measured point.

    Raises:
        UserError: see `read_rows`; or there is no such file, or nothing measured in it.
    """
    if not Path(path).exists():
        raise UserError(f"{path} does not exist: python -m scripts.evaluate writes it")
    rows = read_rows(path)
    if all(row.is_floor for row in rows):
        raise UserError(f"{path} holds no measured points: run python -m scripts.evaluate first")
    return rows


def _torn(last: bytes) -> bool:
    """Whether what follows the last newline is the beginning of a row, whose writing was
    interrupted."""
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        return True
    return False


def drop_torn_line(path: Path) -> None:
    """Removes a last line that was cut off by a kill, or gives a whole one its newline, so that
    appending is safe."""
    if not path.is_file():
        return
    content = path.read_bytes()
    if not content or content.endswith(b"\n"):
        return
    whole, _, last = content.rpartition(b"\n")
    if not _torn(last):
        append_line(path, "")
        return
    print(f"{path}: its last line was cut off and is measured again", file=sys.stderr)
    with open(path, "r+b") as file:
        file.truncate(len(whole) + 1 if whole else 0)


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """While the block runs, no other process may enter it for the same curves file: two sweeps
    would measure points twice.

    Raises:
        UserError: another one is at it, or the file cannot be written.
    """
    check_place(path)
    if path.exists():
        open(path, "ab").close()  # whether it may be appended to
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another sweep is writing {path}: wait for it, or give another out=FILE"
        ) from error
    try:
        yield
    finally:
        lock.release()


def append_row(path: Path, row: Row) -> None:
    """Adds one line, on disk when this returns."""
    append_line(path, row.json_line())
