"""Shortcut models (Frans, Hafner, Levine and Abbeel 2025, arXiv 2410.12557), algorithm 1."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from core.condition import Condition
from core.data import Batch, ImageSource
from core.diffusion.paths import expand
from core.model import Model
from core.networks.dropout import same_dropout
from core.setting import Steps
from core.training.method import Loss, Progress, drop_labels, mean_square, noise_of
from flows.flow_map import FlowMap, FlowMapConfig, rows


class ShortcutConfig(FlowMapConfig):
    """The keys of shortcut models."""

    segments: Steps = 128
    """a power of 2: the shortest step is 1 / segments of the way"""
    bootstrap: float = Field(default=0.25, ge=0, le=1)
    """share of the batch that learns a step from two of half its length"""
    target: Literal["average", "student"] = "average"
    """who makes the two half steps: the moving average, or the student without gradient"""
    clip: float = Field(default=4.0, ge=0, le=1e6)
    """largest absolute value in targets and half-way points, as in the authors' code; 0: any"""

    @field_validator("segments")
    @classmethod
    def _halves(cls, segments: int) -> int:
        if segments < 2 or segments & (segments - 1):
            raise ValueError(f"{segments} is no power of 2 from 2 on: steps are halved")
        return segments


class Shortcut(FlowMap):
    """The network is told the step d = t - s that it is to take. At d = 0 it learns the velocity;
    a longer step learns from two of half its length, made without gradient by the moving average,

        F(x_t, t, t - 2d) = (F(x_t, t, t - d) + F(x_{t-d}, t - d, t - 2d)) / 2 (eq. 4 and 5),

    with steps 1, 1/2, ..., 2 / segments drawn evenly and t a multiple of the step. A half step of 1
    / segments is asked for as d = 0 (sec. 3.2).

    Deviations: no guidance where d = 0 but a teacher's; the paper's text-free models take none
    either. t runs from data to noise here. Which samples bootstrap is drawn, and no fixed part of
    the batch, so that it does not depend on the batch.
    """

    Config = ShortcutConfig

    def __init__(
        self,
        config: ShortcutConfig,
        model: Model,
        source: ImageSource | None,
        teacher: Model | None = None,
    ):
        super().__init__(config, model, source, teacher)
        self.levels = round(math.log2(config.segments))

    def times(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """t, s (both [B] float64) and which samples bootstrap (bool [B])."""
        longer = batch.rng.uniform("bootstrap") < self.config.bootstrap
        pieces = 2.0 ** batch.rng.integers(self.levels, "level").double()  # of the way, in one step
        step = torch.where(longer, 1 / pieces, torch.zeros_like(pieces))
        starts = torch.where(longer, pieces, torch.full_like(pieces, self.config.segments))
        t = ((batch.rng.uniform("time") * starts).floor() + 1) / starts
        return t, t - step, longer

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        student, (t, s, longer), eps = self.student, self.times(batch), noise_of(batch)
        x_t = student.path.mix(batch.x0, eps, t)
        condition = drop_labels(batch, self.config.label_dropout, student.spec.num_classes)
        batch = batch._replace(condition=condition, eps=eps)
        target, short = torch.empty_like(x_t), ~longer
        if bool(short.any()):
            some = rows(batch, short)
            velocity = self.velocity(some.x0, some.eps, x_t[short], t[short], some.condition)
            target[short] = velocity.to(target.dtype)
        if bool(longer.any()):
            some = rows(batch, longer).condition
            target[longer] = self.two_steps(x_t[longer], t[longer], s[longer], some)
        F = self.roles["student"].wrapped.output(x_t, t, condition, s)
        return Loss(mean_square(F.float() - target.float()), t)

    @torch.no_grad()
    def two_steps(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """The mean velocity [B, ...] of two steps, from t half the way to s and from there."""
        model = self.student
        if self.config.target == "average":
            model = model.with_network(self.roles["student"].average())
        half = (t - s) / 2
        told = torch.where(half * self.config.segments > 1, half, torch.zeros_like(half))
        with same_dropout(x):
            first = model.output(x, t, condition, t - told)
            there = self._clipped(x - expand(half, x) * first)
            second = model.output(there, t - half, condition, t - half - told)
        return self._clipped((first + second) / 2)

    def _clipped(self, x: Tensor) -> Tensor:
        return x.clamp(-self.config.clip, self.config.clip) if self.config.clip else x
