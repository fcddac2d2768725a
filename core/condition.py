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
    text: int64 [B, L], the tokens of a caption, 0 for padding; padding alone is the empty caption,
    which is the null caption.
    """

    label: Tensor | None = None
    guidance: Tensor | None = None
    text: Tensor | None = None

    def inputs(self) -> dict[str, Tensor]:
        """The parts that are given, by name: a network's keyword arguments."""
        return {name: part for name, part in self._asdict().items() if part is not None}

    def without_label(self, null: int, dropped: Tensor | None = None) -> Condition:
        """The null label `null` and the null caption in place of every label and caption, or of
        those that `dropped` [B] marks."""

        def swapped(part: Tensor | None, value: int) -> Tensor | None:
            if part is None:
                return None
            nulls = torch.full_like(part, value)
            if dropped is None:
                return nulls
            return torch.where(dropped.view(-1, *[1] * (part.ndim - 1)), nulls, part)

        return self._replace(label=swapped(self.label, null), text=swapped(self.text, 0))

    def label_alone(self) -> Condition:
        """Without the other parts, for critics that are told no more."""
        return Condition(label=self.label)

    def tells(self, null: int) -> Tensor | None:
        """Whether each sample has a label or a caption that is not null: bool [B]; None where there
        are neither labels nor captions."""
        told = None if self.label is None else self.label != null
        if self.text is None:
            return told
        captioned = (self.text > 0).any(1)
        return captioned if told is None else told | captioned

    def rows(self, which: Tensor) -> Condition:
        """Of the samples that `which` names, as an index or a mask."""
        return Condition(*(None if part is None else part[which] for part in self))

    def beside(self, other: Condition) -> Condition:
        """Both, one after the other along the batch."""
        parts = zip(self, other, strict=True)
        return Condition(*(None if a is None else torch.cat([a, b]) for a, b in parts))


UNCONDITIONED = Condition()
