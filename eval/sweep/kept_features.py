"""Features of a measured point, kept on request: other metrics and error bars of it then cost no
sampling."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import Tensor

from core.files import read_tensors, write_tensors

# What decides the samples and their features. Sets, error bars and metrics do not.
IDENTITY = (
    "dataset",
    "run",
    "weights_sha256",
    "sampler",
    "steps",
    "guidance_scale",
    "threshold",
    "grid",
    "seed",
    "extractor",
    "extractor_sha256",
)


def file_of(folder: Path, row: dict, count: int) -> Path:
    """Where the features [count, D] of a row's samples belong."""
    short = hashlib.sha256(repr([row[key] for key in IDENTITY] + [count]).encode()).hexdigest()[:12]
    name = "-".join(str(row[key]) for key in ("run", "sampler", "steps", "extractor"))
    return folder / (
        "".join(c if c.isalnum() or c in "-_+." else "_" for c in name) + f"-{short}.safetensors"
    )


def keep(file: Path, row: dict, features: Tensor, images: Tensor, measured: dict) -> None:
    """Writes features [count, D] and the first images [K, C, H, W]; `measured`: the row's keys that
    only sampling tells."""
    about = {
        "row": json.dumps({key: row[key] for key in IDENTITY}),
        "measured": json.dumps(measured),
    }
    write_tensors(file, {"features": features, "images": images}, about)


def kept(file: Path) -> tuple[Tensor, Tensor, dict] | None:
    """(features, first images, measured) as `keep` was given them; None where there are none, or
    where they are damaged."""
    found = read_tensors(file, "its point is sampled again")
    if found is None:
        return None
    tensors, about = found
    return tensors["features"], tensors["images"], json.loads(about["measured"])
