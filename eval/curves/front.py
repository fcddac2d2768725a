"""Costs of rows, and which rows are the best that a cost buys."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eval.curves.pareto import pareto_front
from eval.rows import Row

LOWEST = 1e-3  # what a logarithmic axis shows of distances around zero
Cost = Callable[[Row], float]


def evaluations(row: Row) -> float:
    return row.nfe


def milliseconds(row: Row) -> float:
    return 1e3 * row.seconds_per_image


def points(rows: list[Row], cost: Cost) -> tuple[np.ndarray, np.ndarray]:
    """x and y of rows in a picture with logarithmic axes."""
    return np.array([cost(row) for row in rows]), np.array([max(row.fid, LOWEST) for row in rows])


def front(rows: list[Row], cost: Cost) -> list[Row]:
    """The rows that no other one beats, by rising cost: at each cost, the best that was measured up
    to it. Nothing is read off lines between points."""
    return [rows[i] for i in pareto_front([(cost(row), max(row.fid, LOWEST)) for row in rows])]
