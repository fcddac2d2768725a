"""Which times a training step visits, in float64, addressed by sample and so free of batch size.

A time sampler maps the random numbers of a batch to t [B]; a pair sampler to t [B] and s [B].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from core.config import Strict
from core.diffusion.paths import Path
from core.noise import Noise

TimeSampler = Callable[[Noise], Tensor]
PairSampler = Callable[[Noise], tuple[Tensor, Tensor]]


class TimeConfig(Strict):
    """How training times t in (0, 1) are drawn."""

    LATER = ("share",)

    name: Literal["uniform", "logit-normal", "u-shaped", "mixture"] = "uniform"
    """logit-normal: sigmoid(N(mean, std^2)) (Esser et al. 2024); u-shaped: density proportional to
    e^{a t} + e^{a (1 - t)} (Lee et al. 2024, for reflow); mixture: uniform and logit-normal"""
    mean: float = Field(default=0.0, ge=-20, le=20)
    """of logit-normal"""
    std: float = Field(default=1.0, gt=0, le=20)
    """of logit-normal"""
    a: float = Field(default=4.0, ge=1e-3, le=20)
    """of u-shaped"""
    share: float = Field(default=0.5, gt=0, lt=1)
    """of mixture: that of the uniform times"""


def on_grid(steps: int) -> TimeSampler:
    """Uniform on 1 / steps, 2 / steps, ..., 1: the times of a discrete-time DDPM, or where the
    steps of a sampler start."""
    return lambda rng: (rng.integers(steps, "time") + 1).double() / steps


def make_time_sampler(config: TimeConfig, draw: int = 0) -> TimeSampler:
    """draw: the number of the draw, for those who need several independent times per sample."""

    def uniform(rng: Noise) -> Tensor:
        return rng.uniform("time", draw)

    def logit_normal(rng: Noise) -> Tensor:
        z = rng.normal((1,), "time", draw, dtype=torch.float64)[:, 0]
        return torch.sigmoid(config.mean + config.std * z)

    def u_shaped(rng: Noise) -> Tensor:
        # The inverse of the distribution function, a quadratic in e^{a t}.
        top = math.exp(config.a)
        c = 2 * (top - 1) * uniform(rng) - (top - 1)
        return torch.log(0.5 * (c + (c.square() + 4 * top).sqrt())) / config.a

    def mixture(rng: Noise) -> Tensor:
        first = rng.uniform("time-mixture", draw) < config.share
        return torch.where(first, uniform(rng), logit_normal(rng))

    samplers = {"uniform": uniform, "logit-normal": logit_normal, "u-shaped": u_shaped}
    return {**samplers, "mixture": mixture}[config.name]


def time_density(config: TimeConfig, t: Tensor) -> Tensor:
    """[B] float64: the density of `config`'s times at t [B]. As a weight of uniform times it has
    the same expected loss as sampling, with another variance."""
    t = t.double()
    if config.name == "uniform":
        return torch.ones_like(t)
    if config.name == "u-shaped":
        rising = torch.exp(config.a * t) + torch.exp(config.a * (1 - t))
        return 0.5 * config.a * rising / math.expm1(config.a)
    z = (torch.logit(t, 1e-12) - config.mean) / config.std
    normal = torch.exp(-0.5 * z.square()) / (config.std * math.sqrt(2 * math.pi))
    logit_normal = normal / (t * (1 - t)).clamp(min=1e-12)
    if config.name == "logit-normal":
        return logit_normal
    return config.share + (1 - config.share) * logit_normal


def make_pair_sampler(config: TimeConfig, unequal: float) -> PairSampler:
    """Two times drawn as `config` says, the larger one as t and the other as s; with probability
    1 - `unequal` s is t (Geng et al. 2025, sec. 4.3)."""
    first, second = make_time_sampler(config, 0), make_time_sampler(config, 1)

    def pair(rng: Noise) -> tuple[Tensor, Tensor]:
        a, b = first(rng), second(rng)
        t, s = torch.maximum(a, b), torch.minimum(a, b)
        return t, torch.where(rng.uniform("unequal") < unequal, s, t)

    return pair


class NoiseTimeConfig(Strict):
    """How training times are drawn where a paper states them as noise levels sigma / alpha."""

    name: Literal["log-normal", "uniform"] = "log-normal"
    """log-normal: ln(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1); uniform: in
    t"""
    mean: float = Field(default=-1.1, ge=-20, le=20)
    """of log-normal"""
    std: float = Field(default=2.0, gt=0, le=20)
    """of log-normal"""


def make_noise_time_sampler(config: NoiseTimeConfig, path: Path) -> TimeSampler:
    """Times t [B] float64 on `path`; levels beyond its last one become t = 1."""

    def log_normal(rng: Noise) -> Tensor:
        z = rng.normal((1,), "time", dtype=torch.float64)[:, 0]
        return path.time(-config.mean - config.std * z).clamp(min=1e-12, max=1.0)

    return log_normal if config.name == "log-normal" else lambda rng: rng.uniform("time")
