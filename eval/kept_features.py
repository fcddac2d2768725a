"""Features of a measured point, kept on request: other metrics and error bars of it then cost no sampling."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

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
    return folder / ("".join(c if c.isalnum() or c in "-_+." else "_" for c in name) + f"-{short}.safetensors")


def keep(file: Path, row: dict, features: Tensor, images: Tensor, measured: dict) -> None:
    """Writes features [count, D] and the first images [K, C, H, W]; `measured`: the row's keys that only sampling tells."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    about = {"row": json.dumps({key: row[key] for key in IDENTITY}), "measured": json.dumps(measured)}
    save_file({"features": features.contiguous(), "images": images.contiguous()}, partial, metadata=about)
    os.replace(partial, file)


def kept(file: Path) -> tuple[Tensor, Tensor, dict] | None:
    """(features, first images, measured) as `keep` was given them; None where there are none. A damaged file is reported and
    counts as none."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in ("features", "images")}
            measured = json.loads((opened.metadata() or {})["measured"])
        if torch.isfinite(tensors["features"]).all():
            return tensors["features"], tensors["images"], measured
        reason = "it holds NaN"
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = str(error)
    print(f"warning: {file} is damaged ({reason}); its point is sampled again", file=sys.stderr)
    return None
