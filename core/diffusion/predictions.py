"""What a network's output means, and conversion from any meaning to any other.

eps (noise), x0 (data), v = alpha eps - sigma x0 (Salimans and Ho 2022, app. D) and u = dx/dt =
alpha' x0 + sigma' eps (the velocity of flow matching). At given (x_t, t) each determines all
others, except where a coefficient vanishes: there the conversion raises instead of clipping.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from core.diffusion.paths import Path, expand

Prediction = Literal["eps", "x0", "v", "u"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)


class Denoised(NamedTuple):
    """A guess of the two ingredients of x_t: data x0 and noise eps, each [B, ...]."""

    x0: Tensor
    eps: Tensor


class SingularTime(ValueError):
    """A conversion was asked for at a time where it would divide by zero."""


def _refuse_zero(value: Tensor, what: str) -> None:
    if not bool((value.abs() > 0).all()):
        raise SingularTime(
            f"{what}: the conversion divides by zero there; use another prediction or another time"
        )


def to_denoised(kind: Prediction, F: Tensor, x: Tensor, t: Tensor, path: Path) -> Denoised:
    """Reads F [B, ...] as `kind` at x [B, ...] and t ([] or [B]); returns (x0, eps).

    Raises:
        SingularTime: eps where alpha is 0, x0 where sigma is 0, u where the path's speed is
            infinite.
    """
    c = path.at(t)
    alpha, sigma = expand(c.alpha, x), expand(c.sigma, x)
    if kind == "eps":
        _refuse_zero(c.alpha, "prediction eps has no x0 at a time where alpha is 0")
        return Denoised((x - sigma * F) / alpha, F)
    if kind == "x0":
        _refuse_zero(c.sigma, "prediction x0 has no eps at a time where sigma is 0")
        return Denoised(F, (x - alpha * F) / sigma)
    if kind == "v":
        norm = alpha.square() + sigma.square()
        return Denoised((alpha * x - sigma * F) / norm, (sigma * x + alpha * F) / norm)
    if kind == "u":
        if not bool(torch.isfinite(c.dsigma).all()):
            raise SingularTime(
                "prediction u is infinite at t = 0 of this path; use another prediction or another time"
            )
        dalpha, dsigma = expand(c.dalpha, x), expand(c.dsigma, x)
        wronskian = alpha * dsigma - sigma * dalpha
        return Denoised((dsigma * x - sigma * F) / wronskian, (alpha * F - dalpha * x) / wronskian)
    raise ValueError(f"unknown prediction '{kind}', known: {', '.join(PREDICTIONS)}")


def from_denoised(kind: Prediction, x0: Tensor, eps: Tensor, t: Tensor, path: Path) -> Tensor:
    """The value of `kind` for data x0 [B, ...] and noise eps [B, ...] at t ([] or [B]): the
    regression target."""
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    c = path.at(t)
    if kind == "v":
        return expand(c.alpha, x0) * eps - expand(c.sigma, x0) * x0
    if kind == "u":
        if not bool(torch.isfinite(c.dsigma).all()):
            raise SingularTime("u = dx/dt is infinite at t = 0 of this path")
        return expand(c.dalpha, x0) * x0 + expand(c.dsigma, x0) * eps
    raise ValueError(f"unknown prediction '{kind}', known: {', '.join(PREDICTIONS)}")


def convert(
    kind: Prediction, target: Prediction, F: Tensor, x: Tensor, t: Tensor, path: Path
) -> Tensor:
    """F read as `kind` at (x, t), expressed as `target`."""
    if kind == target:
        return F
    return from_denoised(target, *to_denoised(kind, F, x, t, path), t, path)
