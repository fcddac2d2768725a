"""Tensors on disk: safetensors with a checksum, and what others wrote, read as tensors alone."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import UserError, reason
from core.files import whole_file


def write_tensors(
    path: Path, tensors: dict[str, Tensor], about: dict[str, str] | None = None
) -> None:
    """Writes safetensors with a checksum of the tensors; `about` is kept in the header."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    about = about or {}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={**about, "sha256": _sha256(tensors, about)})


def _sha256(tensors: dict[str, Tensor], about: dict[str, str]) -> str:
    """The checksum of tensors and what is said about them."""
    digest = tensors_sha256(tensors)
    if not about:
        return digest
    return hashlib.sha256((digest + json.dumps(about, sort_keys=True)).encode()).hexdigest()


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file, open: `keys()`, `get_tensor(name)`, `metadata()`.

    Raises:
        OSError: it is missing or damaged, or went away as it was read, for which torch and the
            library have two more kinds of error.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, RuntimeError) as error:
        raise OSError(str(error)) from error


def read_tensors(
    path: Path, consequence: str, names: Iterable[str] = ()
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """(tensors, about) as `write_tensors` was given them; None if there is no such file.

    A file that fails its checksum, or lacks one of `names`, counts as none: a warning names it and
    the `consequence`.
    """
    if not path.is_file():
        return None
    try:
        with open_tensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            about = dict(file.metadata() or {})
        # Features kept by earlier versions have no checksum, or one of the tensors alone
        written, known = (
            about.pop("sha256", None),
            (_sha256(tensors, about), tensors_sha256(tensors)),
        )
        if (written is None or written in known) and tensors.keys() >= set(names):
            return tensors, about
    except OSError:
        pass
    print(f"warning: {path} is damaged; {consequence}", file=sys.stderr, flush=True)
    return None


def load_tensors(file: Path, complaint: str) -> dict[str, Tensor]:
    """The named tensors, on the CPU, of a file that others wrote: safetensors, or pickled by
    torch.save. Nothing in it is run.

    Raises:
        UserError: the `complaint` about the file and the reason, where it is damaged or holds
            anything but named tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says it all
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a file that is no archive leads it to
        raise UserError(f"{file} {complaint}: {reason(error)}") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise UserError(f"{file} {complaint}: it holds more than named tensors")
    return dict(state)


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """The hash of names, shapes and values, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + str(tuple(tensors[name].shape)).encode())
        digest.update(tensors[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
