"""Gaussian paths x_t = alpha_t x0 + sigma_t eps, with t = 0 at the data and t = 1 at the noise.

Every path gives alpha, sigma, their time derivatives, lam = log(alpha / sigma) and the inverse of
lam, elementwise for a tensor t, computed in float64 and returned in float64: whoever needs another
dtype casts the result.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.errors import UserError, nearest


class Coefficients(NamedTuple):
    """alpha, sigma, d alpha / dt, d sigma / dt, all of the shape of t, float64."""

    alpha: Tensor
    sigma: Tensor
    dalpha: Tensor
    dsigma: Tensor


def expand(c: Tensor, x: Tensor) -> Tensor:
    """A coefficient [] or [B], in x's dtype and on its device, shaped to multiply x [B, ...]: the
    one place that broadcasts. A [] on the processor stays there: it meets x as a number does, and a
    GPU does not wait for it."""
    if c.ndim == 0 and c.device.type == "cpu":
        return c.to(x.dtype)
    return c.to(device=x.device, dtype=x.dtype).view(-1, *[1] * (x.ndim - 1))


class Path(ABC):
    """A schedule of alpha and sigma; see the module's docstring for the convention.

    config: its name, or the table that it was built from, as a model's spec has it.
    """

    config: Any

    @abstractmethod
    def at(self, t: Tensor) -> Coefficients:
        """The coefficients at t (any shape, values in [0, 1])."""

    @abstractmethod
    def time(self, lam: Tensor) -> Tensor:
        """The inverse of lam: the t with log(alpha_t / sigma_t) = lam, in float64."""

    def alpha(self, t: Tensor) -> Tensor:
        return self.at(t).alpha

    def sigma(self, t: Tensor) -> Tensor:
        return self.at(t).sigma

    def lam(self, t: Tensor) -> Tensor:
        """Half the log signal-to-noise ratio; +inf where sigma is 0 and -inf where alpha is 0."""
        c = self.at(t)
        return c.alpha.log() - c.sigma.log()

    def straight(self, t: Tensor) -> Tensor:
        """The time w = sigma / (alpha + sigma) at which a straight path has the noise of this one
        at t: with y = x_t / (alpha + sigma), y = (1 - w) x0 + w eps. All Gaussian paths are the
        rectified one in these coordinates."""
        c = self.at(t)
        return c.sigma / (c.alpha + c.sigma)

    def from_straight(self, w: Tensor) -> Tensor:
        """The inverse of `straight`, for 0 < w <= straight(1)."""
        return self.time(torch.log1p(-w.double()) - w.double().log())

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t [B, ...] from data x0 [B, ...], noise eps [B, ...] and times t [B]."""
        c = self.at(t)
        return expand(c.alpha, x0) * x0 + expand(c.sigma, x0) * eps


class _VariancePreserving(Path):
    """alpha^2 + sigma^2 = 1, from log alpha and sigma^2, which the subclass gives without
    cancellation."""

    @abstractmethod
    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log alpha, its time derivative, and sigma^2, at float64 t."""

    def at(self, t: Tensor) -> Coefficients:
        h, dh, variance = self.log_alpha(t.double())
        alpha, sigma = h.exp(), variance.sqrt()
        # d sigma = -alpha d alpha / sigma, which is infinite at t = 0 where sigma starts like
        # sqrt(t).
        return Coefficients(alpha, sigma, alpha * dh, -alpha.square() * dh / sigma)


class VPLinear(_VariancePreserving):
    """The DDPM schedule (Ho et al. 2020, section 4): T = 1000 steps, beta from 1e-4 to 0.02 in
    equal increments.

    Table entry k (0..T-1) sits at t = (k + 1) / T, and t = 0 is clean data. Between entries the
    product prod_{j < n} (1 - beta_j), whose factors fall linearly by d, is continued analytically
    by the gamma function, d^n Gamma(z) / Gamma(z - n) with z = (1 - beta_0) / d + 1: exact at every
    entry and smooth everywhere, unlike interpolation.
    """

    config = "vp-linear"
    STEPS, FIRST, LAST = 1000, 1e-4, 0.02

    def __init__(self) -> None:
        self.increment = (self.LAST - self.FIRST) / (self.STEPS - 1)
        self.z = (1 - self.FIRST) / self.increment + 1

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # log d^n Gamma(z) / Gamma(z - n) by Stirling's series, whose next term is 1e-16 of this
        # one: the difference of two lgamma near 5e5 would lose all digits of sigma near t = 0.
        n, d, z = self.STEPS * t, self.increment, self.z
        log = torch.log1p(-n / z)
        double_h = n * math.log1p(d - self.FIRST) - n - (z - n - 0.5) * log - n / (12 * z * (z - n))
        slope = math.log1p(d - self.FIRST) + log - 0.5 / (z - n) - 1 / (12 * (z - n).square())
        return 0.5 * double_h, 0.5 * self.STEPS * slope, 0.0 - torch.expm1(double_h)

    def time(self, lam: Tensor) -> Tensor:
        h = -0.5 * torch.nn.functional.softplus(
            -2 * lam.double()
        )  # log alpha for variance-preserving paths
        # A quadratic guess (beta summed as an integral), then Newton's method, which converges to
        # rounding in a few steps.
        a, b = 0.25 * self.increment, 0.5 * self.FIRST
        t = (-b + (b * b - 4 * a * h).sqrt()) / (2 * a) / self.STEPS
        for _ in range(6):
            value, slope, _ = self.log_alpha(t)
            t = t - (value - h) / slope
        return t


class VPCosine(_VariancePreserving):
    """The cosine schedule (Nichol and Dhariwal 2021, eq. 17), s = 0.008, beta clipped at 0.999.

    alpha_t = cos(theta_t) / cos(theta_0) with theta linear in t. The clipping touches the last of
    the T = 1000 steps only, where it leaves alpha-bar_1 = 0.001 alpha-bar_{0.999} instead of 0. The
    continuous path reaches that value by a quadratic bend of theta on the last step, so all 1000
    table entries are exact and the path is once differentiable.
    """

    config = "vp-cosine"
    STEPS, S, CLIP = 1000, 0.008, 0.999

    def __init__(self) -> None:
        self.theta0 = 0.5 * math.pi * self.S / (1 + self.S)
        self.slope = 0.5 * math.pi / (1 + self.S)
        self.knee = 1 - 1 / self.STEPS
        # cos(theta_1) that leaves a beta of CLIP on the last step, as a distance of theta_1 from pi
        # / 2
        self.bend = math.asin(
            math.sqrt(1 - self.CLIP) * math.cos(self.theta0 + self.slope * self.knee)
        )

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        past = (t - self.knee).clamp(min=0) * self.STEPS  # 0..1 within the last step
        # cos(theta) as the sine of the small angle to pi / 2, which keeps its digits near t = 1
        rest = self.slope * (1 - t) + self.bend * past.square()
        slope = self.slope - 2 * self.STEPS * self.bend * past
        turned = self.slope * t - self.bend * past.square()  # theta - theta_0
        variance = turned.sin() * (turned + 2 * self.theta0).sin() / math.cos(self.theta0) ** 2
        return rest.sin().log() - math.log(math.cos(self.theta0)), -slope / rest.tan(), variance

    def time(self, lam: Tensor) -> Tensor:
        h = -0.5 * torch.nn.functional.softplus(-2 * lam.double())
        rest = torch.asin(h.exp() * math.cos(self.theta0))
        # Near the data from sigma^2, by sin(a - b) sin(a + b) = sin^2 a - sin^2 b, which keeps its
        # digits there.
        product = torch.sigmoid(-2 * lam.double()) * math.cos(self.theta0) ** 2
        turned = torch.asin(product / torch.cos(rest - self.theta0))
        t = torch.where(turned < 0.5, turned / self.slope, 1 - rest / self.slope)
        # On the last step solve bend p^2 + slope (1 - p) / STEPS = rest for p in 0..1.
        a, b, c = self.bend, -self.slope / self.STEPS, self.slope / self.STEPS - rest
        p = 2 * c / (-b + (b * b - 4 * a * c).clamp(min=0).sqrt())
        return torch.where(t > self.knee, self.knee + p / self.STEPS, t)


class Rectified(Path):
    """The straight path of rectified flow (Liu et al. 2023, eq. 1): alpha = 1 - t, sigma = t."""

    config = "rectified"

    def at(self, t: Tensor) -> Coefficients:
        t = t.double()
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)

    def time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam.double())

    def from_straight(self, w: Tensor) -> Tensor:
        return w.double()


class Trigonometric(Path):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Salimans and Ho 2022, app. D; TrigFlow of Lu
    and Song 2025)."""

    config = "trigonometric"

    def at(self, t: Tensor) -> Coefficients:
        angle = 0.5 * math.pi * t.double()
        # sin of the complement: exactly 0 at t = 1, where cos(pi / 2) in floating point is not
        cos, sin = torch.sin(0.5 * math.pi * (1 - t.double())), torch.sin(angle)
        return Coefficients(cos, sin, -0.5 * math.pi * sin, 0.5 * math.pi * cos)

    def time(self, lam: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-lam.double()))


PATHS: dict[str, type[Path]] = {
    "vp-linear": VPLinear,
    "vp-cosine": VPCosine,
    "rectified": Rectified,
    "trigonometric": Trigonometric,
}


def make_path(name: str) -> Path:
    """The path of that name; raises UserError naming the nearest known one."""
    if name not in PATHS:
        raise UserError(f"unknown path '{name}'{nearest(name, PATHS)}")
    return PATHS[name]()
