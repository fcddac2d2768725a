"""Network evaluations, counted where they happen and never computed by formula."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class EvalCounter:
    """What passed through some networks.

    forwards: samples that passed through. evals: their cost in forwards. A forward costs 1; with a
    backward through trained weights 3; with a backward to the input only 2.
    """

    def __init__(self) -> None:
        self.forwards = 0
        self.evals = 0.0

    def _count(self, module: nn.Module, inputs: tuple) -> None:
        samples = len(inputs[0])
        recording = torch.is_grad_enabled()
        trained = recording and any(p.requires_grad for p in module.parameters())
        passed = recording and inputs[0].requires_grad
        self.forwards += samples
        self.evals += samples * (3 if trained else 2 if passed else 1)


_counting: list[EvalCounter] = []


@contextmanager
def count_evals(*networks: nn.Module) -> Iterator[EvalCounter]:
    """Counts what passes through `networks` within the block; guidance, which doubles the batch,
    counts two per sample."""
    counter = EvalCounter()
    handles = [network.register_forward_pre_hook(counter._count) for network in networks]
    _counting.append(counter)
    try:
        yield counter
    finally:
        _counting.remove(counter)
        for handle in handles:
            handle.remove()


def count_unseen(evals: float) -> None:
    """Adds evaluations that no forward pass shows, such as a derivative's, to whoever counts."""
    for counter in _counting:
        counter.evals += evals
