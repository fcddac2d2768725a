"""Progressive distillation (Salimans and Ho 2022, arXiv 2202.00512), algorithm 2."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from core.condition import Condition
from core.data import Batch, ImageSource
from core.diffusion.losses import Weighting, loss_weight
from core.diffusion.parameterisations import from_denoised
from core.diffusion.paths import expand
from core.diffusion.times import on_grid
from core.model import Model
from core.setting import Steps
from core.training.method import (
    Context,
    Loss,
    Method,
    MethodConfig,
    Progress,
    Stage,
    mean_square,
    noise_of,
    regress,
)
from core.training.roles import Role
from students.teacher import (
    load_teacher,
    student_source,
    supervised_by,
    trainable_copy,
    with_guidance,
)


class ProgressiveConfig(MethodConfig):
    """The keys of progressive distillation."""

    LATER = ("dropout",)

    teacher: str
    """run, folder or hub id of the teacher"""
    start_steps: Steps = 64
    """steps of the first student, halved from stage to stage"""
    end_steps: Steps = 1
    """steps of the last student"""
    prediction: Literal["v", "x0"] = "v"
    """what the students predict"""
    weight: Weighting = "truncated-snr"
    """weight of the squared error over noise levels (core/diffusion/losses.py)"""
    last_share: float = Field(default=2.0, ge=1e-6, le=1e6)
    """budget of each of the last two stages, relative to the others"""
    conversion_share: float = Field(default=1.0, ge=1e-6, le=1e6)
    """likewise of the stage that turns a teacher of another prediction into the students'"""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of the student; both papers' codes switch the teacher's off"""

    @model_validator(mode="after")
    def _halves(self) -> ProgressiveConfig:
        ratio = self.start_steps / self.end_steps
        if ratio < 1 or ratio != 2 ** round(torch.tensor(ratio).log2().item()):
            raise ValueError(
                f"start_steps={self.start_steps} cannot be halved to end_steps={self.end_steps}: "
                "their ratio must be a power of 2"
            )
        return self


class Progressive(Method):
    """Each student learns to do in one DDIM step what its teacher does in two, then becomes the
    teacher.

    For a student of N steps, t = i / N with i uniform on 1..N, t' = t - 0.5/N, t'' = t - 1/N: two
    DDIM steps of the teacher give z'', and the target is the x0 whose single step lands there,
        x~ = (z'' - (sigma''/sigma_t) z_t) / (alpha'' - (sigma''/sigma_t) alpha_t).
    The loss is w(t) ||x~ - x0_student(z_t)||^2 with w = max(SNR, 1) (the paper's truncated SNR),
    stated in the student's own prediction, which is the same loss. The paper doubles the length of
    the last two stages, as does `last_share`.

    Deviations: the next teacher is the stage's moving average (the paper has none while distilling;
    with a rate falling to 0 both are nearly the same). A teacher that predicts neither v nor x0 is
    first converted at its own full resolution, by regressing the new prediction on the teacher's,
    at continuous times (the paper trains its teachers in v or x0).
    """

    Config = ProgressiveConfig
    changing = ("teacher",)

    def __init__(self, config: ProgressiveConfig, teacher: Model, source: ImageSource | None):
        self.config, self.source, self.teacher = config, source, teacher
        student = trainable_copy(
            teacher, config.dropout, prediction=config.prediction, discrete_steps=None
        )
        self.roles, self.helpers = {"student": Role(student)}, {"teacher": teacher.network}
        # Per stage the student's steps; None: conversion
        self.steps: list[int | None] = []
        if teacher.spec.prediction != config.prediction:
            self.steps.append(None)
        n = config.start_steps
        while n >= config.end_steps:
            self.steps.append(n)
            n //= 2

    @classmethod
    def from_config(cls, config: ProgressiveConfig, context: Context) -> Progressive:
        run = load_teacher(config.teacher, context)
        method = cls(config, run.model, student_source(run, context))
        supervised_by(method, run)
        return method

    def stages(self) -> list[Stage]:
        last_two, c = self.steps[-2:] if self.config.end_steps == 1 else [], self.config
        return [
            Stage("convert", c.conversion_share)
            if n is None
            else Stage(f"{2 * n} to {n} steps", c.last_share if n in last_two else 1.0, steps=n)
            for n in self.steps
        ]

    def begin_stage(self, index: int) -> None:
        if index > 0:
            role = self.roles["student"]
            weights = role.average().state_dict()
            self.teacher = role.model.with_network(self.helpers["teacher"])
            self.teacher.network.load_state_dict(weights)
            role.model.network.load_state_dict(weights)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        batch = with_guidance(batch, self.teacher.spec)
        student, N = self.roles["student"].wrapped, self.steps[progress.stage]
        path, kind, eps = student.path, student.spec.prediction, noise_of(batch)
        t = batch.rng.uniform("time") if N is None else on_grid(N)(batch.rng)
        z = path.mix(batch.x0, eps, t)
        if N is None:
            with torch.no_grad():
                x0, eps_guess = self.teacher.denoised(z, t, batch.condition)
        else:
            x0, c = self.two_steps(z, t, N, batch.condition), path.at(t)
            eps_guess = (z - expand(c.alpha, z) * x0) / expand(c.sigma, z)
        target = from_denoised(kind, x0, eps_guess, t, path)
        error = regress(student, z, t, target, kind, batch.condition)
        return Loss(mean_square(error) * loss_weight(self.config.weight, kind, t, path).float(), t)

    @torch.no_grad()
    def two_steps(self, z: Tensor, t: Tensor, N: int, condition: Condition) -> Tensor:
        """x~ [B, ...] for z [B, ...] at t [B]."""
        path = self.teacher.path
        middle, end = t - 0.5 / N, (t - 1 / N).clamp(min=0)
        z1 = self.teacher.map(z, t, middle, condition)
        z2 = self.teacher.map(z1, middle, end, condition)
        c, c2 = path.at(t), path.at(end)
        ratio = c2.sigma / c.sigma
        return (z2 - expand(ratio, z) * z) / expand(c2.alpha - ratio * c.alpha, z)
