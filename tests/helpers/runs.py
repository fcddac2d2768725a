"""What trained runs are compared by."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from core.training.checkpoints import latest_checkpoint


def weights(run: Path, which: str) -> dict[str, torch.Tensor]:
    return load_file(latest_checkpoint(run) / f"{which}.safetensors")


def images_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[0])


def assert_same_bits(a: Path, b: Path) -> None:
    for which in ("raw", "ema"):
        one, two = weights(a, which), weights(b, which)
        assert one.keys() == two.keys()
        for name in one:
            assert torch.equal(one[name], two[name]), f"{which} {name}"
