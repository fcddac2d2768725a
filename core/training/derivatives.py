"""Directional derivatives of a model's output, without gradients: exact, or by two evaluations."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from core.condition import UNCONDITIONED, Condition
from core.counting import count_unseen
from core.model import Model
from core.networks.dropout import same_dropout

Derivative = Literal["forward", "difference"]
STEP = 1e-3  # of the central difference, in t: its error and float32's rounding are of one size


@torch.no_grad()
def jvp(
    model: Model,
    x: Tensor,
    t: Tensor,
    s: Tensor | None,
    tangent: Tensor,
    condition: Condition = UNCONDITIONED,
    backend: Derivative = "forward",
    step: float = STEP,
) -> tuple[Tensor, Tensor]:
    """The output F(x, t, s) [B, ...] and d/dh F(x + h tangent, t + h, s) at h = 0 [B, ...].

    float32 at least, whatever the model's autocast. Call it with the bare network: through a
    wrapper for many processes a derivative skips the synchronisation without a word.

    Args:
        x, tangent: [B, ...].
        t, s: [B] float64; s stays fixed (None: the network has no second time).
        backend: "forward" is forward-mode differentiation, priced as 2 evaluations; "difference"
            the central difference of two further evaluations, which needs no support from the
            network, at t - step and t + step kept within [0, 1] and above s.
        step: of the difference. A wide one leaves out what a network of large time_scale does
            between neighbouring times, which its exact derivative is full of.
    """
    if backend == "forward":
        count_unseen(len(x))
        with forward_ad.dual_level():
            dual_x = forward_ad.make_dual(x, tangent.to(x.dtype))
            dual_t = forward_ad.make_dual(t, torch.ones_like(t))
            F = model.output(dual_x, dual_t, condition, s, autocast=False)
            value, derivative = forward_ad.unpack_dual(F)
            return value, torch.zeros_like(value) if derivative is None else derivative
    low = torch.full_like(t, 0.0) if s is None else s.to(t)
    before, after = (t - step).clamp(min=low), (t + step).clamp(max=torch.ones_like(t))

    def at(time: Tensor) -> Tensor:
        h = (time - t).view(-1, *[1] * (x.ndim - 1))
        moved = (x.double() + h * tangent.double()).to(x.dtype)
        return model.output(moved, time, condition, s, autocast=False).double()

    with same_dropout(x):
        first = at(before)
    last = at(after)
    width = (after - before).view(-1, *[1] * (x.ndim - 1))
    share = ((t - before) / (after - before)).view(-1, *[1] * (x.ndim - 1))
    return torch.lerp(first, last, share).to(x.dtype), ((last - first) / width).to(x.dtype)
