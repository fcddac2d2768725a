"""What every network says of itself in its config."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from core.config import Strict


class NetworkBase(Strict):
    """A network's sizes, and how to build it.

    Besides its own keys every config has, as a key or as a constant of the class:
        conditional: whether the network takes labels where the data has any;
        dropout: its rate;
        second_time: whether it takes r.

    The network is called as `net(x, t, r, **inputs) -> F` with x [B, C, S, S], t [B] in [0, 1], r
    [B] or None, and the parts of the condition by name (core/condition.py).
    """

    def with_dropout(self, rate: float) -> NetworkBase:
        """The same network at another rate of dropout, where it has any."""
        return (
            self.model_copy(update={"dropout": rate})
            if "dropout" in type(self).model_fields
            else self
        )

    @abstractmethod
    def build(self, channels: int, side: int, num_classes: int) -> nn.Module:
        """A freshly initialised network; raises UserError if images or classes do not fit it."""
