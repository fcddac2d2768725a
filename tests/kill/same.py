"""Whether two folders hold the same, to the bit, but for what the clock decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

# Times and what is measured beside them, and the checksums of files that hold times
FREE = {"seconds", "images_per_second", "seconds_per_image", "train_seconds", "peak_memory_bytes",
        "state.pt", "price.json"}  # fmt: skip
ABOUT = ("about", "sha256")  # of kept features: seconds among them, and a checksum that covers them


def differences(one: Path, two: Path, free: frozenset[str] | set[str] = frozenset()) -> list[str]:
    """A line for each file that is not the same in both, or in one alone. A lock is no file. free:
    keys that may differ besides FREE."""
    found, free = [], FREE | free
    names = {_name(file, folder) for folder in (one, two) for file in _files(folder)}
    for name in sorted(names):
        a, b = one / name, two / name
        if not (a.is_file() and b.is_file()):
            found.append(f"{name} is in {'the first' if a.is_file() else 'the second'} alone")
        elif a.read_bytes() != b.read_bytes() and not _equal(_content(a, free), _content(b, free)):
            found.append(f"{name} differs")
    return found


def _files(folder: Path) -> list[Path]:
    return [f for f in folder.rglob("*") if f.is_file() and f.suffix != ".lock"]


def _name(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder))


def _content(file: Path, free: set[str]) -> Any:
    """What a file says, without `free`; None for a kind that only its bytes are compared of."""
    if file.suffix == ".json":
        return _fixed(json.loads(file.read_text()), free)
    if file.suffix == ".jsonl":
        return [_fixed(json.loads(line), free) for line in file.read_text().splitlines()]
    if file.suffix == ".yaml":
        return _fixed(yaml.safe_load(file.read_text()), free)
    if file.suffix == ".pt":
        return _fixed(torch.load(file, map_location="cpu", weights_only=True), free)
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            about = {k: v for k, v in (opened.metadata() or {}).items() if k not in ABOUT}
            return about | {name: opened.get_tensor(name) for name in opened.keys()}
    return None


def _fixed(value: Any, free: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _fixed(inner, free) for key, inner in value.items() if key not in free}
    return [_fixed(inner, free) for inner in value] if isinstance(value, (list, tuple)) else value


def _equal(a: Any, b: Any) -> bool:
    if a is None or type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def _same(a: Any, b: Any) -> bool:
    return (a is None and b is None) or _equal(a, b)
