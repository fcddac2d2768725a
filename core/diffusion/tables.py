"""A path from a table of betas: DDPM schedules other than VP-linear and VP-cosine at T = 1000."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from core.config import Strict
from core.diffusion.paths import Coefficients, Path

Schedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "given"]


class BetaTable(Strict):
    """A DDPM schedule as plain data, by the names that diffusers gives them.

    linear (Ho et al. 2020), scaled_linear (linear in the square root, Rombach et al. 2022),
    squaredcos_cap_v2 (Nichol and Dhariwal 2021), sigmoid (Xu et al. 2022), laplace (Hang et al.
    2024), or given: the betas themselves.
    """

    name: Literal["table"] = "table"
    """the path's kind"""
    schedule: Schedule
    """how beta grows"""
    steps: int = Field(default=1000, ge=2, le=1_000_000)
    """T, the number of betas"""
    first: float = 1e-4
    """beta at the first step, where the schedule has it as a parameter"""
    last: float = 0.02
    """beta at the last step, likewise"""
    betas: tuple[float, ...] | None = None
    """the betas themselves, for schedule: given"""
    zero_terminal_snr: bool = False
    """shift and scale the square roots of alpha-bar so that the last is 0 and the first is kept (Lin
    et al. 2024, alg. 1)"""

    @model_validator(mode="after")
    def _makes_a_path(self) -> BetaTable:
        if (self.betas is not None) != (self.schedule == "given"):
            raise ValueError("betas are given exactly when schedule is given")
        if self.betas is not None and len(self.betas) != self.steps:
            raise ValueError(f"{len(self.betas)} betas for steps = {self.steps}")
        betas = self._plain_betas()
        if not bool(
            ((betas > 0) & (betas < 1)).all() if self.zero_terminal_snr else self._ordered(betas)
        ):
            raise ValueError(
                "every beta must be above 0 and below 1 (the last may be 1: no signal is left)"
            )
        return self

    @staticmethod
    def _ordered(betas: Tensor) -> bool:
        return bool((betas > 0).all() and (betas[:-1] < 1).all() and betas[-1] <= 1)

    def _plain_betas(self) -> Tensor:
        """float64 [T], before any rescaling."""
        T, first, last = self.steps, self.first, self.last
        if self.betas is not None:
            return torch.tensor(self.betas, dtype=torch.float64)
        if self.schedule == "linear":
            return torch.linspace(first, last, T, dtype=torch.float64)
        if self.schedule == "scaled_linear":
            return torch.linspace(
                max(first, 0) ** 0.5, max(last, 0) ** 0.5, T, dtype=torch.float64
            ).square()
        if self.schedule == "sigmoid":
            return torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid() * (last - first) + first
        u = torch.arange(T + 1, dtype=torch.float64) / T
        if self.schedule == "squaredcos_cap_v2":
            signal = torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()
        else:  # laplace, as diffusers has it: the square root of alpha-bar's sigmoid, with 1e-6 inside the logarithm
            lam = -0.5 * torch.sign(0.5 - u) * torch.log(1 - 2 * (0.5 - u).abs() + 1e-6)
            signal = torch.sigmoid(lam).sqrt()
        return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)

    def log_signal(self) -> Tensor:
        """log alpha, float64 [T + 1]: entry n is after n betas, so 0 first; -inf last where no
        signal is left."""
        log = 0.5 * torch.cat(
            [torch.zeros(1, dtype=torch.float64), torch.log1p(-self._plain_betas()).cumsum(0)]
        )
        if self.zero_terminal_snr:
            alpha = log.exp()
            # alpha_n - alpha_T over alpha_1 - alpha_T, times alpha_1: near the data as 1 minus
            # something small, in logarithms
            scale = alpha[1] / (alpha[1] - alpha[-1])
            log = torch.cat([log[:2], torch.log((alpha[2:] - alpha[-1]) * scale)])
        return log

    def effective_betas(self) -> Tensor:
        """float64 [T], as they are after any rescaling."""
        return -torch.expm1(2 * self.log_signal().diff())

    def build(self) -> TablePath:
        return TablePath(self.log_signal(), self)

    def __str__(self) -> str:
        """In words, for tables and reports."""
        ends = (
            f" {self.first:g}..{self.last:g}"
            if self.schedule in ("linear", "scaled_linear", "sigmoid")
            else ""
        )
        return f"table: {self.schedule}{ends}, T = {self.steps}{', zero terminal SNR' if self.zero_terminal_snr else ''}"


def _hermite(s: Tensor, rise: Tensor, m0: Tensor, m1: Tensor) -> tuple[Tensor, Tensor]:
    """The cubic with value 0 and slope m0 at s = 0, value `rise` and slope m1 at s = 1, and its
    derivative."""
    c2, c3 = 3 * rise - 2 * m0 - m1, m0 + m1 - 2 * rise
    return s * (m0 + s * (c2 + s * c3)), m0 + s * (2 * c2 + 3 * s * c3)


class TablePath(Path):
    """Variance-preserving, exact at all T entries, once differentiable and strictly monotone
    between them.

    Entry k (0..T-1) sits at t = (k + 1) / T and t = 0 is clean data, as on VPLinear. Between
    entries 1 - alpha is a cubic Hermite polynomial whose slopes at the entries are the means of the
    neighbouring differences (exact for parabolas), at most twice the smaller one, which makes it
    strictly monotone for any table (Fritsch and Carlson 1980 allow three times).

    1 - alpha and not log alpha, since it is finite at both ends, also where the last alpha is 0
    (zero terminal SNR); it is summed from the nearer entry and alpha from the noisier one, so that
    each keeps its digits where it is small.
    """

    def __init__(self, log_signal: Tensor, config: BetaTable | None = None):
        """log_signal: log alpha [T + 1], strictly decreasing from 0; config: where it comes
        from."""
        self.config = config
        self.steps = len(log_signal) - 1
        signal, loss = log_signal.exp(), -torch.expm1(log_signal)
        # Differences of neighbours, without cancellation
        rise = -signal[:-1] * torch.expm1(log_signal.diff())
        before, after = rise[:-1], rise[1:]
        inner = torch.minimum(0.5 * (before + after), 2 * torch.minimum(before, after))
        # At the ends the slope of the parabola through the three nearest entries, kept within the
        # monotone region
        first = torch.clamp(1.5 * rise[0] - 0.5 * rise[1], 0.1 * rise[0], 2 * rise[0])
        last = torch.clamp(1.5 * rise[-1] - 0.5 * rise[-2], 0.1 * rise[-1], 2 * rise[-1])
        slope = torch.cat([first[None], inner, last[None]])
        self._cpu = (signal, loss, rise, slope)
        self._tables = {torch.device("cpu"): self._cpu}

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if device not in self._tables:
            self._tables[device] = tuple(table.to(device) for table in self._cpu)
        return self._tables[device]

    def _within(self, i: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, 1 - alpha and d(1 - alpha)/ds at the fraction s of interval i."""
        signal, loss, rise, slope = self._on(s.device)
        m0, m1, up = slope[i], slope[i + 1], rise[i]
        gained, derivative = _hermite(s, up, m0, m1)
        left, _ = _hermite(1 - s, up, m1, m0)  # the same cubic, seen from its other end
        return (
            signal[i + 1] + left,
            torch.where(s < 0.5, loss[i] + gained, loss[i + 1] - left),
            derivative,
        )

    def at(self, t: Tensor) -> Coefficients:
        n = t.double() * self.steps
        i = n.detach().floor().clamp(0, self.steps - 1).long()
        alpha, loss, derivative = self._within(i, n - i)
        sigma = (loss * (1 + alpha)).sqrt()
        dalpha = -self.steps * derivative
        # d sigma = -alpha d alpha / sigma, which is infinite at t = 0 where sigma starts like
        # sqrt(t).
        return Coefficients(alpha, sigma, dalpha, -alpha * dalpha / sigma)

    def time(self, lam: Tensor) -> Tensor:
        """The inverse of lam; values beyond the path's ends give its ends."""
        lam = lam.double()
        log_alpha = -0.5 * F.softplus(-2 * lam)
        alpha = log_alpha.exp()
        loss = torch.sigmoid(-2 * lam) / (1 + alpha)  # 1 - alpha
        signal, losses, _, _ = self._on(lam.device)
        # Near the data alpha has no digits left to tell entries apart, near the noise 1 - alpha has
        # none.
        by_loss = torch.searchsorted(losses, loss.contiguous(), right=True) - 1
        by_signal = self.steps - torch.searchsorted(
            signal.flip(0).contiguous(), alpha.contiguous(), right=False
        )
        near_data = loss < 0.5
        i = torch.where(near_data, by_loss, by_signal).clamp(0, self.steps - 1)
        low, high = torch.zeros_like(lam), torch.ones_like(lam)
        span = (losses[i + 1] - losses[i]).clamp(min=torch.finfo(torch.float64).tiny)
        s = ((loss - losses[i]) / span).clamp(0, 1)
        for _ in range(
            60
        ):  # Newton's method, kept inside a bracket by bisection; a handful of rounds for smooth tables
            alpha_s, loss_s, derivative = self._within(i, s)
            excess = torch.where(near_data, loss_s - loss, alpha - alpha_s)
            low, high = torch.where(excess <= 0, s, low), torch.where(excess >= 0, s, high)
            step = s - excess / derivative
            new = torch.where((step >= low) & (step <= high), step, 0.5 * (low + high))
            done = bool(((new - s).abs() <= 1e-16 + 2e-16 * s).all())
            s = new
            if done:
                break
        return (i + s) / self.steps
