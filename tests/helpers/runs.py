"""What trained runs are compared by."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from core.training.checkpoints import CHECKSUMS, latest_checkpoint
from core.weights import read_spec, read_weights, save_weights


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


def diverge(run: Path) -> None:
    """Puts NaN in place of a run's averaged weights, as if its training had written them."""
    file = latest_checkpoint(run) / "ema.safetensors"
    spec, state = read_spec(file), read_weights(file)
    save_weights(file, {name: torch.full_like(w, torch.nan) for name, w in state.items()}, spec)
    (file.parent / CHECKSUMS).unlink()
