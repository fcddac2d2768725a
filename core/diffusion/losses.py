"""Losses: weights of the squared error by time, and distances between samples.

A weight is stated for the squared error of x0 and carried over to the error of any other
prediction.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from core.diffusion.parameterisations import Prediction
from core.diffusion.paths import Path

Weighting = Literal["simple", "min-snr", "truncated-snr"]


def x0_error_scale(kind: Prediction, t: Tensor, path: Path) -> Tensor:
    """[B] float64: ||x0 error||^2 = scale * ||error of `kind`||^2 at t [B]."""
    c = path.at(t)
    if kind == "x0":
        return c.alpha.new_ones(c.alpha.shape)
    if kind == "eps":
        return (c.sigma / c.alpha).square()
    if kind == "v":
        return (c.sigma / (c.alpha.square() + c.sigma.square())).square()
    return (c.sigma / (c.alpha * c.dsigma - c.sigma * c.dalpha)).square()


def straight_error_scale(kind: Prediction, t: Tensor, path: Path) -> Tensor:
    """[B] float64: ||error of eps - x0||^2 = scale * ||error of `kind`||^2 at t [B]. eps - x0 is the
    velocity in the straight coordinates of `Path.straight`."""
    c = path.at(t)
    total = c.alpha + c.sigma
    if kind == "x0":
        return (total / c.sigma).square()
    if kind == "eps":
        return (total / c.alpha).square()
    if kind == "v":
        return (total / (c.alpha.square() + c.sigma.square())).square()
    return (total / (c.alpha * c.dsigma - c.sigma * c.dalpha)).square()


def loss_weight(
    weighting: Weighting, kind: Prediction, t: Tensor, path: Path, gamma: float = 5.0
) -> Tensor:
    """[B] float64 weight of the squared error of `kind`.

    simple: 1 (Ho et al. 2020, eq. 14, there for eps). min-snr: min(SNR, gamma) on x0 (Hang et al.
    2023, eq. 6). truncated-snr: max(SNR, 1) on x0 (Salimans and Ho 2022, sec. 4), which for eps is
    unbounded at pure noise.
    """
    if weighting == "simple":
        return t.new_ones(t.shape)
    c = path.at(t)
    if kind == "eps":
        # Divided out by hand, since SNR may be 0: min(SNR, gamma) / SNR and max(SNR, 1) / SNR.
        inverse = (c.sigma / c.alpha).square()
        return (gamma * inverse).clamp(max=1) if weighting == "min-snr" else inverse.clamp(min=1)
    scale = x0_error_scale(kind, t, path)
    snr = (c.alpha / c.sigma).square()
    return scale * (snr.clamp(max=gamma) if weighting == "min-snr" else snr.clamp(min=1))


Distance = Literal["squared", "pseudo-huber"]


def distance(name: Distance, difference: Tensor, huber: float) -> Tensor:
    """[B, ...] -> [B].

    squared: the mean square. pseudo-huber: sqrt(||d||^2 + c^2) - c with c = huber sqrt(dimension)
    (Song and Dhariwal 2024, eq. 7, where huber = 0.00054).
    """
    squares = difference.square().flatten(1)
    if name == "squared":
        return squares.mean(1)
    c = huber * squares.shape[1] ** 0.5
    return (squares.sum(1) + c * c).sqrt() - c
