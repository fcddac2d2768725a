"""Which points nobody beats."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, distance) that no other point dominates, by rising cost; less is
    better in both.

    A point dominates another if it is at most as large in both and smaller in one; of equal points,
    all are kept.
    """
    front: list[int] = []
    best = float("inf")
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best or (front and points[i] == points[front[-1]]):
            front.append(i)
            best = points[i][1]
    return front
