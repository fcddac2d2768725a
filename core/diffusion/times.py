"""Which times a training step visits: `sampler(rng) -> t [B]` in float64, addressed by sample, so
free of batch size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from core.config import Strict
from core.noise import Noise

TimeSampler = Callable[[Noise], Tensor]


class TimeConfig(Strict):
    """name: uniform on (0, 1); logit-normal: sigmoid(N(mean, std^2)) (Esser et al. 2024); u-shaped:
    density proportional to e^{a t} + e^{a (1 - t)} (Lee et al. 2024, for reflow)."""

    name: Literal["uniform", "logit-normal", "u-shaped"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    a: float = 4.0


def uniform(rng: Noise) -> Tensor:
    return rng.uniform("time")


def on_grid(steps: int) -> TimeSampler:
    """Uniform on 1 / steps, 2 / steps, ..., 1: the times of a discrete-time DDPM, or where the
    steps of a sampler start."""
    return lambda rng: (rng.integers(steps, "time") + 1).double() / steps


def make_time_sampler(config: TimeConfig) -> TimeSampler:
    if config.name == "logit-normal":
        return lambda rng: torch.sigmoid(
            config.mean + config.std * rng.normal((1,), "time", dtype=torch.float64)[:, 0]
        )
    if config.name == "u-shaped":
        top = math.exp(config.a)

        def u_shaped(rng: Noise) -> Tensor:
            # The inverse of the distribution function, a quadratic in e^{a t}.
            c = 2 * (top - 1) * rng.uniform("time") - (top - 1)
            return torch.log(0.5 * (c + (c.square() + 4 * top).sqrt())) / config.a

        return u_shaped
    return uniform
