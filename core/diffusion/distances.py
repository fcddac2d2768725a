"""Distances between images, per sample."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

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
