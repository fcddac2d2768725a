"""curves.jsonl: one JSON object a line, one line a measured point; lines are only ever appended."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout  # PyTorch depends on it

from core.errors import UserError

# What makes two rows measurements of the same thing. Machine, batch size, process count and date do
# not.
IDENTITY = (
    "dataset",
    "method",
    "run",
    "weights_sha256",
    "sampler",
    "steps",
    "guidance_scale",
    "threshold",
    "grid",
    "n",
    "fid_error",
    "seed",
    "extractor",
    "extractor_sha256",
    "reference",
    "reference_sha256",
)
FULL_FID = 50_000  # the n that an FID without an n in its name has
# Rows that agree in these may be drawn in one curve or table.
PROTOCOL = (
    "dataset",
    "metric",
    "n",
    "extractor",
    "extractor_sha256",
    "reference",
    "reference_sha256",
)
# What a line of a table or a curve of a plot has in common: everything but the number of steps. Not
# the weights: a run may keep other weights for other numbers of steps, and is one curve all the
# same.
SERIES = (
    "method",
    "run",
    "ema",
    "sampler",
    "guidance_scale",
    "threshold",
    "grid",
    "config_sha256",
    "seed",
)


def identity(row: dict) -> tuple:
    """The row's values of IDENTITY."""
    return tuple(row[key] for key in IDENTITY)


def series_key(row: dict) -> tuple:
    """The row's values of SERIES."""
    return tuple(row[key] for key in SERIES)


def read_rows(path: str | Path) -> list[dict]:
    """All complete rows of a curves file; [] if there is none. A last line that was cut off by a
    kill is left out.

    Raises:
        UserError: any other line that is not a row, with its number.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file, for example {path / 'curves.jsonl'}")
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                identity(row)
                rows.append(row)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # no newline after it: writing it was interrupted
                break
            raise UserError(
                f"{path}, line {number} is not a row of a curve ({error!r}): mend or delete that line"
            ) from error
    return rows


def drop_torn_line(path: Path) -> None:
    """Removes a last line that was cut off by a kill, or gives a whole one its newline, so that
    appending is safe."""
    if not path.is_file():
        return
    content = path.read_bytes()
    if not content or content.endswith(b"\n"):
        return
    whole, _, last = content.rpartition(b"\n")
    try:
        identity(json.loads(last))
        with open(path, "ab") as file:
            file.write(b"\n")
    except (ValueError, KeyError, TypeError):
        print(f"{path}: its last line was cut off and is measured again", file=sys.stderr)
        with open(path, "r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """While the block runs, no other process may enter it for the same curves file: two sweeps
    would measure points twice.

    Raises:
        UserError: another one is at it.
    """
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


def append_row(path: Path, row: dict) -> None:
    """Adds one line, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def measure_words(row: dict, key: str = "fid") -> str:
    """The name a metric must go by: "FD@300", "FID", "KD@300", "FD∞"; only an FID of 50,000 images
    is called FID plainly."""
    if key == "fid_infinity":
        return f"{row['metric']}∞"
    names = {
        "fid": row["metric"],
        "kid": "KID" if row["metric"] == "FID" else "KD",
        "class_distance": "share of classes off",
    }
    name = names.get(key, key)
    return name if row["metric"] == "FID" and row["n"] >= FULL_FID else f"{name}@{row['n']}"


def is_floor(row: dict) -> bool:
    """Whether the row compares real images with real images: nothing was sampled."""
    return row["sampler"] is None


def by_protocol(rows: list[dict]) -> list[list[dict]]:
    """Rows grouped by PROTOCOL, in order of appearance: nothing measured differently ends up in one
    picture or table.

    Of several rows of one series and number of steps only the last counts: the run was measured
    again after more training, or with another error bar.

    A floor joins every group that differs from it in n alone (a test split may be smaller than n);
    whoever shows it there says so.
    """

    def key(row: dict, *without: str) -> tuple:
        return tuple(row[name] for name in PROTOCOL if name not in without)

    points: dict[tuple, dict[tuple, dict]] = {}
    for row in rows:
        if not is_floor(row):
            points.setdefault(key(row), {})[series_key(row), row["steps"]] = row
    groups = [list(group.values()) for group in points.values()]
    floors = [row for row in rows if is_floor(row)]
    if not groups:
        return [[row] for row in floors]
    for group in groups:
        fitting = [row for row in floors if key(row, "n") == key(group[0], "n")]
        same_n = [row for row in fitting if row["n"] == group[0]["n"]]
        group.extend(same_n[-1:] or fitting[-1:])
    return groups
