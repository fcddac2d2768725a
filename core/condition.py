"""Condition: what a network is told about the wanted sample besides x and its times."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Condition(NamedTuple):
    """Each part is a tensor [B, ...] or None, and reaches the network as the argument of its name.

    label: int64 [B], 0..num_classes - 1, or num_classes for the null label.
    guidance: float [B], the weight of classifier-free guidance, 1.0 is off, for networks that
    learned what it does (`ModelSpec.guidance`).
    """

    label: Tensor | None = None
    guidance: Tensor | None = None

    def inputs(self) -> dict[str, Tensor]:
        """The parts that are given, by name: a network's keyword arguments."""
        return {name: part for name, part in self._asdict().items() if part is not None}

    def without_label(self, null: int, dropped: Tensor | None = None) -> Condition:
        """The null label `null` in place of every label, or of those that `dropped` [B] marks."""
        if self.label is None:
            return self
        nulls = torch.full_like(self.label, null)
        return self._replace(
            label=nulls if dropped is None else torch.where(dropped, nulls, self.label)
        )

    def rows(self, which: Tensor) -> Condition:
        """Of the samples that `which` names, as an index or a mask."""
        return Condition(*(None if part is None else part[which] for part in self))

    def beside(self, other: Condition) -> Condition:
        """Both, one after the other along the batch."""
        parts = zip(self, other, strict=True)
        return Condition(*(None if a is None else torch.cat([a, b]) for a, b in parts))


UNCONDITIONED = Condition()
