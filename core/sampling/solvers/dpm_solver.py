"""DPM-Solver++ multistep, orders 1 to 3, deterministic and stochastic (Lu et al. 2022, arXiv
2211.01095)."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from core.noise import Noise
from core.sampling.denoisers import Denoiser
from core.sampling.solvers.common import Callback, draw, intervals, report


def dpm_solver(
    denoiser: Denoiser,
    noise: Tensor,
    grid: Tensor,
    rng: Noise | None = None,
    callback: Callback | None = None,
    order: int = 2,
    stochastic: bool = False,
) -> Tensor:
    """One evaluation a step; the first steps, and a step that ends on clean data, have the order
    their history allows.

    With h = lam_s - lam_t the exact solution is x_s = (sigma_s / sigma_t) x + alpha_s * integral of
    e^{-(h - tau)} x0(tau) over tau in 0..h (eq. 8), and for the SDE the same with 2 in place of 1
    in the exponent, e^{-h} more decay of x and noise sigma_s sqrt(1 - e^{-2h}) (sec. 5, eq. 13).
    x0(tau) is the polynomial through the last guesses.

    Order 2 is the paper's midpoint form (alg. 2). Order 3 integrates the quadratic exactly. The
    authors' code and diffusers enter the second difference at half that weight, which leaves a
    method of order 2 by measurement (tests/core/sampling/test_solvers.py).
    """
    kind = 2.0 if stochastic else 1.0
    x, history = (
        noise,
        [],
    )  # (lam, x0), newest last; a guess at lam = -inf (pure noise) says nothing about slopes
    for step in intervals(denoiser.path, grid):
        a, b = step.a, step.b
        x0, _ = denoiser(x, a.time)
        h = b.lam - a.lam
        use = 1 if b.sigma == 0 or not math.isfinite(h) else min(order, len(history) + 1)
        gain = -math.expm1(-kind * h)  # 1 - e^{-kind h}, which is 1 when h is infinite
        guess = gain * x0
        if use >= 2:
            (lam1, x0_1) = history[-1]
            r0 = (a.lam - lam1) / h
            d = (x0 - x0_1) / r0  # h times the slope, seen half an interval back
            if use == 2:
                guess = guess + 0.5 * gain * d
            else:
                (lam2, x0_2) = history[-2]
                r1 = (lam1 - lam2) / h
                curve = (d - (x0_1 - x0_2) / r1) / (r0 + r1)  # h^2 / 2 times the second derivative
                phi2 = 1 - gain / (kind * h)
                phi3 = 0.5 - phi2 / (kind * h)
                guess = guess + phi2 * (d + r0 * curve) + 2 * phi3 * curve
        decay = b.sigma / a.sigma * (math.exp(-h) if stochastic else 1.0)
        x = decay * x + b.alpha * guess
        if stochastic and b.sigma > 0:
            x = x + b.sigma * math.sqrt(-math.expm1(-2 * h)) * draw(rng, x, step.index)
        if math.isfinite(a.lam):
            history = [*history[-1:], (a.lam, x0)]
        report(callback, step, x, x0)
    return x


dpm_solver_2m = partial(dpm_solver, order=2)
dpm_solver_3m = partial(dpm_solver, order=3)
dpm_solver_2m_sde = partial(dpm_solver, order=2, stochastic=True)
dpm_solver_3m_sde = partial(dpm_solver, order=3, stochastic=True)
