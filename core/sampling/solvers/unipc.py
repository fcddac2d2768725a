"""UniPC, the unified predictor-corrector (Zhao et al. 2023), data prediction, B2(h) = e^h - 1."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from core.noise import Noise
from core.sampling.denoisers import Denoiser
from core.sampling.solvers.common import Callback, Point, intervals, report

History = list[tuple[float, Tensor]]  # (lam, x0), newest last


def _weights(ratios: list[float], h: float) -> np.ndarray:
    """Solves the paper's R rho = b (eq. 5) for data prediction; `ratios` are (lam_i - lam_t) / h of
    the extra points.

    For a single point in the past, and for a single point at the end, rho = 1/2 does for any B
    (paper's prop. 3.1).
    """
    if len(ratios) == 1:
        return np.array([0.5])
    phi = math.expm1(-h) / -h - 1
    factorial, b = 1.0, []
    for i in range(1, len(ratios) + 1):
        b.append(phi * factorial / math.expm1(-h))
        factorial *= i + 1
        phi = phi / -h - 1 / factorial
    return np.linalg.solve(np.vander(ratios, increasing=True).T, np.array(b))


def _update(x: Tensor, a: Point, b: Point, x0: Tensor, others: History) -> Tensor:
    """From x at a to b, with x0 the guess at a and `others` further guesses (in the past, or at b
    itself)."""
    h = b.lam - a.lam
    slope = 0.0
    if others:
        ratios = [(lam - a.lam) / h for lam, _ in others]
        for rho, ratio, (_, guess) in zip(_weights(ratios, h), ratios, others, strict=True):
            slope = slope + float(rho) / ratio * (guess - x0)
    return b.sigma / a.sigma * x - b.alpha * math.expm1(-h) * (x0 + slope)


def unipc(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
    order: int = 3,
) -> Tensor:
    """UniP-`order` followed by UniC-`order`, one evaluation a step (alg. 1 and 2 of the paper).

    The corrector reuses the evaluation at the predicted point for the next step. With `order` past
    points the accuracy is order + 1; the first steps, and a step that ends on clean data, have the
    order their history allows.
    """
    x, history = noise, []
    previous: tuple[Tensor, Point, History] | None = (
        None  # where the last step started, for its correction
    )
    for step in intervals(denoiser.path, grid):
        a, b = step.a, step.b
        x0, _ = denoiser(x, a.time)
        if previous is not None:
            start, point, past = previous
            *older, (_, guess) = past
            x = _update(start, point, a, guess, [*older, (a.lam, x0)])
        history = [*history, (a.lam, x0)][-order:] if math.isfinite(a.lam) else []
        free = b.sigma > 0 and math.isfinite(a.lam)
        previous = (x, a, history) if free else None
        x = _update(x, a, b, x0, history[:-1] if free else [])
        report(callback, step, x, x0)
    return x
