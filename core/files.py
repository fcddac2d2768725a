"""Files and folders that are whole or not there, places that are tried ahead of work, and text in
UTF-8."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from core.errors import UserError, reason

_UMASK = os.umask(0)  # can only be read by setting it
os.umask(_UMASK)


def _partial(path: Path) -> Path:
    """A name beside `path` for this process. Leftovers of processes that were killed are removed,
    but for a folder that was about to be replaced and whose place is empty: that goes back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{escape(path.name)}.*.replaced"):
        if not _alive(owner := left.name.split(".")[-2]) and left.name == _aside(path, owner).name:
            _remove(left) if path.exists() else os.rename(left, path)
    for left in path.parent.glob(f".{escape(path.name)}.*.partial"):
        owner = left.name.split(".")[-2]
        if not _alive(owner) or owner == str(os.getpid()):
            _remove(left)
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _aside(path: Path, process: int | str) -> Path:
    return path.with_name(f".{path.name}.{process}.replaced")


def _place(path: str | Path, folder: bool) -> Path:
    """Where to write: `path`, or what it links to.

    Raises:
        UserError: something is there that is no file (or no folder) and must not be replaced by
            one, such as a device or a pipe.
    """
    place = Path(os.path.realpath(path))
    kind = "folder" if folder else "file"
    if os.path.lexists(place) and not (os.path.isdir if folder else os.path.isfile)(place):
        raise UserError(f"{path} exists and is no {kind}: give another name")
    return place


@contextmanager
def _named(path: str | Path, partial: Path | None = None) -> Iterator[None]:
    """A failure to write to `partial` (None: any), however the library that wrote words it, names
    `path`."""
    try:
        yield
    except OSError as error:
        if error.filename and partial and not Path(error.filename).is_relative_to(partial):
            raise  # of another place
        what = os.strerror(error.errno) if error.errno else reason(error)
        raise UserError(f"{path} could not be written: {what}") from error
    except (SafetensorError, RuntimeError) as error:
        if not any(words in str(error) for words in WRITE_FAILED):
            raise
        raise UserError(f"{path} could not be written: {reason(error)}") from error


# In the words of safetensors and of torch.save
WRITE_FAILED = ("I/O error", "PytorchStreamWriter", "inline_container")


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _sync(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to. It takes `path`'s name, on disk, when the block ends
    without an error; otherwise it is removed and `path` stays as it was. A link stays one: the file
    that it leads to is replaced.

    Raises:
        UserError: `path` exists and is no regular file, or cannot be written.
    """
    place = _place(path, folder=False)
    with _named(path):
        partial = _partial(place)
    try:
        with _named(path, partial):
            yield partial
            partial.chmod(0o666 & ~_UMASK)  # safetensors makes its files private
            _sync(partial)
            os.replace(partial, place)
    finally:
        _remove(partial)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """The same for a new folder, which is made empty. A folder called `path` is replaced."""
    place = _place(path, folder=True)
    with _named(path):
        partial = _partial(place)
    try:
        with _named(path, partial):
            partial.mkdir()
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _sync(file)
            if place.exists():
                old = _aside(place, os.getpid())
                os.rename(place, old)
                os.rename(partial, place)
                _remove(old)
            else:
                os.rename(partial, place)
    finally:
        _remove(partial)


def check_place(path: str | Path, folder: bool = False) -> None:
    """Tries, ahead of the work, whether a file can be written to `path`, or with `folder` files in a
    folder of that name. Leaves nothing behind.

    Raises:
        UserError: not, because of what is there, who may write there, or a disk that is full.
    """
    place = _place(path, folder)
    above = place if folder else place.parent
    with _named(path):
        while not above.exists():
            above = above.parent
        with tempfile.TemporaryFile(dir=above) as file:
            file.write(bytes(4096))
            file.flush()


def append_line(path: Path, line: str) -> None:
    """Adds a line to a text file, on disk when this returns. Where that fails the file is as it was.

    Raises:
        UserError: `path` is no regular file, or cannot be written.
    """
    left, place = line.encode() + b"\n", _place(path, folder=False)
    with _named(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        size = os.fstat(file).st_size
        try:
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, size)
            raise
        finally:
            os.close(file)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file in UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_text(path: Path) -> str:
    """The file's text; raises UserError where it is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}): "
            "save it as UTF-8"
        ) from error


def read_json(path: Path, mend: str) -> Any:
    """What a JSON file says; raises UserError, with what would `mend` it, where it is none."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({reason(error)}): {mend}") from error


def sha256_of(path: Path) -> str:
    """The file's hash, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
