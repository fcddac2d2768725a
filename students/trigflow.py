"""TrigFlow (Lu and Song 2025, sec. 3): any model of any path, seen as the network F of
f = cos(a) x - sin(a) sigma_d F on x = cos(a) x0 + sin(a) sigma_d eps, with nothing retrained."""

from __future__ import annotations

import torch
from torch import Tensor

from core.condition import UNCONDITIONED, Condition
from core.diffusion.parameterisations import Plain
from core.diffusion.paths import expand
from core.model import Model


class TrigFlow:
    """A model in TrigFlow's coordinates. Time is still the model's own t; the angle is a =
    arctan(sigma / (sigma_d alpha)).

    A path's x is TrigFlow's times m = sqrt(sigma_d^2 alpha^2 + sigma^2) / sigma_d, so the guess of
    x0 is the same, number by number. On a variance-preserving path with sigma_d = 1, m is 1 and F
    is v.
    """

    def __init__(self, model: Model, sigma_data: float = 1.0):
        self.model, self.sigma_data = model, sigma_data

    def angle(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The angle a, da/dt and m at times t [B], float64."""
        c, d = self.model.path.at(t), self.sigma_data
        q = d**2 * c.alpha.square() + c.sigma.square()
        speed = d * (c.alpha * c.dsigma - c.sigma * c.dalpha) / q
        return torch.atan2(c.sigma, d * c.alpha), speed, q.sqrt() / d

    def inputs(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """TrigFlow's x [B, ...] for the path's x_t [B, ...], the angle [B] and da/dt [B]."""
        angle, speed, m = self.angle(t)
        return x_t / expand(m, x_t), angle, speed

    def output(
        self,
        x: Tensor,
        t: Tensor,
        condition: Condition = UNCONDITIONED,
        s: Tensor | None = None,
        autocast: bool | None = None,
    ) -> Tensor:
        """F [B, ...] at TrigFlow's x [B, ...] and the model's time t [B] in (0, 1]. The signature
        is that of Model.output, as a derivative needs it."""
        x_t = x * expand(self.angle(t)[2], x)
        raw = self.model.output(x_t, t, condition, s, autocast)
        of_raw, of_x = self.coefficients(t)
        return expand(of_raw, x) * raw + expand(of_x, x) * x_t

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """F = first * (the network's output) + second * x_t, [B] float64 each: (cos(a) x - x0) /
        (sigma_d sin(a)) with x0 put in and sin(a) divided out by hand where that is possible."""
        c, d = self.model.path.at(t), self.sigma_data
        n = c.alpha.square() + c.sigma.square()
        q = d**2 * c.alpha.square() + c.sigma.square()
        root = q.sqrt() / d
        parameterisation = self.model.parameterisation
        kind = parameterisation.kind if isinstance(parameterisation, Plain) else None
        if kind == "v":
            return root / n, c.alpha * c.sigma * (d**2 - 1) / (d * q.sqrt() * n)
        if kind == "eps":
            return root / c.alpha, -c.sigma / (c.alpha * d * q.sqrt())
        if kind == "u":
            wronskian = c.alpha * c.dsigma - c.sigma * c.dalpha
            slope = d**2 * c.alpha * c.dalpha + c.sigma * c.dsigma
            return root / wronskian, -slope / (wronskian * d * q.sqrt())
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        path = self.model.path  # affine in (F, x): two readings tell all
        of_raw, of_x = (
            parameterisation.x0(one, zero, t, path),
            parameterisation.x0(zero, one, t, path),
        )
        return -root / c.sigma * of_raw, root / c.sigma * (d**2 * c.alpha / q - of_x)
