"""What a measurement keeps on disk: tensors with a few words about them, in files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Writes beside `path` and renames, with a checksum of the tensors; about: words to keep with them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, partial, metadata={**(about or {}), "sha256": _digest(tensors)})
    os.replace(partial, path)


def read_tensors(path: Path, consequence: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """(tensors, words) as `write_tensors` was given them. None if there is no file; one that fails its checksum counts as none,
    and is reported with the consequence."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors, about = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
        digest = _digest(tensors)
        if about.pop("sha256", digest) == digest:  # features kept by earlier versions have none
            return tensors, about
    except (SafetensorError, OSError):
        pass
    print(f"warning: {path} is damaged; {consequence}", file=sys.stderr, flush=True)
    return None


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + str(tuple(tensors[name].shape)).encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()
