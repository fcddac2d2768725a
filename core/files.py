"""Files and folders that are whole or not there, tensors with a checksum, and text in UTF-8."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.errors import UserError

_UMASK = os.umask(0)  # can only be read by setting it
os.umask(_UMASK)


def _partial(path: Path) -> Path:
    """A name beside `path` for this process; leftovers of processes that were killed are
    removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.partial"):
        owner = left.name.split(".")[-2]
        if not owner.isdigit() or not _alive(int(owner)) or int(owner) == os.getpid():
            _remove(left)
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _sync(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to. It takes `path`'s name, on disk, when the block ends
    without an error; otherwise it is removed and `path` stays as it was."""
    path = Path(path)
    partial = _partial(path)
    try:
        yield partial
        partial.chmod(0o666 & ~_UMASK)  # safetensors makes its files private
        _sync(partial)
        os.replace(partial, path)
    finally:
        _remove(partial)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a new folder, which is made empty. A folder called `path` is replaced."""
    path = Path(path)
    partial = _partial(path)
    try:
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            old = path.with_name(f".{path.name}.old.{os.getpid()}.partial")
            os.rename(path, old)
            os.rename(partial, path)
            _remove(old)
        else:
            os.rename(partial, path)
    finally:
        _remove(partial)


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


def sha256_of(path: Path) -> str:
    """The file's hash, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_tensors(
    path: Path, tensors: dict[str, Tensor], about: dict[str, str] | None = None
) -> None:
    """Writes safetensors with a checksum of the tensors; `about` is kept in the header."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={**(about or {}), "sha256": tensors_sha256(tensors)})


def read_tensors(path: Path, consequence: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """(tensors, about) as `write_tensors` was given them; None if there is no such file.

    A file that fails its checksum counts as none: a warning names it and the `consequence`.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            about = dict(file.metadata() or {})
        digest = tensors_sha256(tensors)
        if about.pop("sha256", digest) == digest:  # features kept by earlier versions have none
            return tensors, about
    except (SafetensorError, OSError):
        pass
    print(f"warning: {path} is damaged; {consequence}", file=sys.stderr, flush=True)
    return None


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """The hash of names, shapes and values, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + str(tuple(tensors[name].shape)).encode())
        digest.update(tensors[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
