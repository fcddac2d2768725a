"""Dropout masks: the one thing that is drawn from PyTorch's global generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def same_dropout(x: Tensor) -> Iterator[None]:
    """Within the block dropout of x's device draws the masks that the forward after it will draw
    again."""
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        yield
