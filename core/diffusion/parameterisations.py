"""Parameterisations: what a network's output F means, and conversion between meanings.

eps (noise), x0 (data), v = alpha eps - sigma x0 (Salimans and Ho 2022, app. D) and u = dx/dt =
alpha' x0 + sigma' eps (the velocity of flow matching). At given (x_t, t) each determines all
others, except where a coefficient vanishes: there the conversion raises instead of clipping. Two
more are no guesses of the ingredients but of where the flow leads: the consistency function and
the mean velocity between two times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor

from core.config import Strict
from core.diffusion.paths import Path, expand
from core.errors import UserError

Prediction = Literal["eps", "x0", "v", "u"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)


class Denoised(NamedTuple):
    """A guess of the two ingredients of x_t: data x0 and noise eps, each [B, ...]."""

    x0: Tensor
    eps: Tensor


class SingularTime(UserError, ValueError):
    """A conversion was asked for at a time where it would divide by zero."""


def refuse_zero(value: Tensor, what: str) -> None:
    """Raises SingularTime, for `what`, where any of these coefficients is 0."""
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
        refuse_zero(c.alpha, "prediction eps has no x0 at a time where alpha is 0")
        return Denoised((x - sigma * F) / alpha, F)
    if kind == "x0":
        refuse_zero(c.sigma, "prediction x0 has no eps at a time where sigma is 0")
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


class ConsistencyFunction(Strict):
    """The consistency function f = c_skip x + c_out F (Song et al. 2023, eq. 5 and app. C)."""

    LATER = ("output",)

    name: Literal["consistency"] = "consistency"
    t_min: float = Field(default=0.0, ge=0, lt=1)
    """time of the boundary, where f = x"""
    sigma_data: float = Field(default=1.0, ge=1e-6, le=1e6)
    """standard deviation of the data"""
    output: Literal["eps", "v", "u"] | None = None
    """F is this, and f the guess of x0 that it makes, which is x at t = 0; null: F is eq. 5's"""

    @model_validator(mode="after")
    def _boundary(self) -> ConsistencyFunction:
        if self.output is not None and self.t_min > 0:
            raise ValueError(f"output={self.output} has its boundary at t = 0: leave t_min at 0")
        return self

    def __str__(self) -> str:
        return f"consistency function from t = {self.t_min:g}"


PredictionConfig = Prediction | Literal["mean-velocity"] | ConsistencyFunction


class Parameterisation(ABC):
    """How F is read. Shapes: F and x [B, ...], times t and s [] or [B], float64.

    sampler: the solver that suits a model of this parameterisation, if it is none for teachers.
    second_time: whether F depends on a second time s, where the flow is to arrive.
    """

    sampler: str = "ddim"
    second_time: bool = False

    @abstractmethod
    def denoised(self, F: Tensor, x: Tensor, t: Tensor, path: Path) -> Denoised:
        """The guess of (x0, eps) behind x at t."""

    def x0(self, F: Tensor, x: Tensor, t: Tensor, path: Path) -> Tensor:
        return self.denoised(F, x, t, path).x0

    def express(self, kind: Prediction, F: Tensor, x: Tensor, t: Tensor, path: Path) -> Tensor:
        """F in terms of `kind`, as a regression needs it."""
        if kind == "x0":
            return self.x0(F, x, t, path)
        return from_denoised(kind, *self.denoised(F, x, t, path), t, path)

    def map(self, F: Tensor, x: Tensor, t: Tensor, s: Tensor, path: Path) -> Tensor:
        """Where the flow through x at t arrives at s <= t: the DDIM step (Song et al. 2021, eq. 12
        with eta = 0), unless F says more."""
        return path.mix(*self.denoised(F, x, t, path), s)


class Plain(Parameterisation):
    """F is eps, x0, v or u itself."""

    t_min = 0.0  # where the guess of x0 is x whatever F is, for eps, v and u

    def __init__(self, kind: Prediction, sampler: str | None = None):
        self.kind = kind
        self.sampler = sampler or ("euler" if kind == "u" else "ddim")

    def denoised(self, F: Tensor, x: Tensor, t: Tensor, path: Path) -> Denoised:
        return to_denoised(self.kind, F, x, t, path)

    def express(self, kind: Prediction, F: Tensor, x: Tensor, t: Tensor, path: Path) -> Tensor:
        return convert(self.kind, kind, F, x, t, path)


class Consistency(Parameterisation):
    """x0 is the consistency function, with f = x at `t_min`.

    In the paper's variables x / alpha and s = sigma / alpha: c_skip = d^2 / ((s - s_min)^2 + d^2)
    and c_out = d (s - s_min) / sqrt(d^2 + s^2), d the standard deviation of the data. F enters with
    a minus sign and x with the paper's input scaling, so that at t_min = 0 on a variance-preserving
    path with d = 1 this *is* v-prediction, alpha x - sigma v: a v-predicting teacher starts the
    student with its own denoiser.
    """

    sampler = "consistency"

    def __init__(self, t_min: float = 0.0, sigma_data: float = 1.0):
        self.t_min, self.sigma_data = t_min, sigma_data

    def scalings(self, t: Tensor, path: Path) -> tuple[Tensor, Tensor]:
        """c_skip / alpha and -c_out, float64, of the shape of t: f = c_skip (x / alpha) + c_out
        F."""
        c, first = path.at(t), path.at(torch.tensor(self.t_min, dtype=torch.float64))
        s_min = (first.sigma / first.alpha).to(c.sigma.device)
        # Multiplied through by powers of alpha, so that alpha = 0 (pure noise) is an ordinary time.
        a2, s2, d2 = c.alpha.square(), c.sigma.square(), self.sigma_data**2
        gap = c.sigma - s_min * c.alpha  # alpha (s - s_min)
        return (
            d2 * c.alpha / (gap.square() + d2 * a2),
            -self.sigma_data * gap / (d2 * a2 + s2).sqrt(),
        )

    def x0(self, F: Tensor, x: Tensor, t: Tensor, path: Path) -> Tensor:
        skip, out = self.scalings(t, path)
        return expand(skip, x) * x + expand(out, x) * F

    def denoised(self, F: Tensor, x: Tensor, t: Tensor, path: Path) -> Denoised:
        x0, c = self.x0(F, x, t, path), path.at(t)
        return Denoised(x0, (x - expand(c.alpha, x) * x0) / expand(c.sigma, x))


class MeanVelocity(Parameterisation):
    """F(x, t, s) is the mean of dx/dt between s and t along the flow through x at t (Geng et al.
    2025, arXiv 2505.13447, eq. 3), and dx/dt itself where s = t."""

    sampler = "flow-map"
    second_time = True

    def denoised(self, F: Tensor, x: Tensor, t: Tensor, path: Path) -> Denoised:
        """For F at s = t."""
        return to_denoised("u", F, x, t, path)

    def map(self, F: Tensor, x: Tensor, t: Tensor, s: Tensor, path: Path) -> Tensor:
        """x_s = x_t - (t - s) F (eq. 12)."""
        return x - expand(t - s, x) * F


def make_parameterisation(config: PredictionConfig) -> Parameterisation:
    """The parameterisation that a spec names."""
    if isinstance(config, ConsistencyFunction) and config.output:
        return Plain(config.output, Consistency.sampler)
    if isinstance(config, ConsistencyFunction):
        return Consistency(config.t_min, config.sigma_data)
    return MeanVelocity() if config == "mean-velocity" else Plain(config)
