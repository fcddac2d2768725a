"""Network evaluations, counted where they happen and never computed by formula."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class EvalCounter:
    """forwards: samples that passed through the networks; evals: the same with 2 more for each that
    will be differentiated, or 1 more where only the gradient to the input passes through a network
    that is not trained."""

    def __init__(self) -> None:
        self.forwards = 0
        self.evals = 0

    def _count(self, module: nn.Module, inputs: tuple) -> None:
        samples = len(inputs[0])
        recording = torch.is_grad_enabled()
        trained = recording and any(p.requires_grad for p in module.parameters())
        passed = recording and inputs[0].requires_grad
        self.forwards += samples
        self.evals += samples * (3 if trained else 2 if passed else 1)


@contextmanager
def count_evals(*networks: nn.Module) -> Iterator[EvalCounter]:
    """Counts what passes through `networks` within the block; guidance, which doubles the batch,
    counts two a sample."""
    counter = EvalCounter()
    handles = [network.register_forward_pre_hook(counter._count) for network in networks]
    try:
        yield counter
    finally:
        for handle in handles:
            handle.remove()
