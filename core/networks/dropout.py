"""Dropout whose masks are addressed: sample i of the batch has the same ones in any number of
processes and micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.noise import Noise, rounded_rate


class _Masks:
    """The addresses of the samples that pass, and how many masks they have had."""

    def __init__(self, rng: Noise):
        self.rng, self.drawn = rng, 0

    def draw(self, rate: float, count: int) -> Tensor:
        self.drawn += 1
        return self.rng.kept(rate, count, "dropout", self.drawn)


_masks: _Masks | None = None


@contextmanager
def dropout_of(rng: Noise) -> Iterator[None]:
    """Within the block `Dropout` draws its masks for the samples that `rng` addresses, anew for
    every layer and forward pass."""
    global _masks
    before, _masks = _masks, _Masks(rng)
    try:
        yield
    finally:
        _masks = before


class Dropout(nn.Dropout):
    """nn.Dropout by addressed masks. Outside of `dropout_of`, and in a forward whose batch is not a
    whole number of times its samples, it draws from PyTorch's generator."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or _masks is None or len(x) % len(_masks.rng):
            return super().forward(x)
        copies, count = len(x) // len(_masks.rng), math.prod(x.shape[1:])
        kept = torch.cat([_masks.draw(self.p, count) for _ in range(copies)])
        return x * kept.view_as(x) / (1 - rounded_rate(self.p))


def address_dropout(network: nn.Module) -> None:
    """Puts `Dropout` in the place of every nn.Dropout of a network."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))


@contextmanager
def same_dropout(x: Tensor) -> Iterator[None]:
    """Within the block dropout of x's device draws the masks that the forward after it will draw
    again."""
    drawn = _masks.drawn if _masks is not None else 0
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        yield
    if _masks is not None:
        _masks.drawn = drawn
