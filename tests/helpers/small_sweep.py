"""A sweep over four points of a tiny teacher of digits."""

from __future__ import annotations

from pathlib import Path

from core.config import parse
from eval.curves_file import read_rows
from eval.sweep.config import SweepConfig

MACHINE = (
    "seconds_per_image",
    "peak_memory_bytes",
    "device",
    "commit",
)  # what may differ between two measurements of one point


def config(run: Path, out: Path, cache: str, entry: dict | None = None, **changes) -> SweepConfig:
    values = {
        "out": str(out),
        "extractor": "digits-cnn",
        "n": 30,
        "bootstrap": 4,
        "batch_size": 16,
        "device": "cpu",
        "cache": cache,
        "entries": [
            {"run": str(run), "samplers": ["ddim", "heun"], "steps": [1, 3], **(entry or {})}
        ],
    }
    return parse(SweepConfig, values | changes, "test")


def comparable(path: Path) -> list[dict]:
    return [row.model_dump(exclude=set(MACHINE)) for row in read_rows(path)]
