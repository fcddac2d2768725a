"""Progressive distillation (Salimans and Ho 2022, arXiv 2202.00512), algorithm 2."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import nn

from core.data import Batch
from core.diffusion.paths import expand
from core.diffusion.predictions import from_denoised
from core.diffusion.times import on_grid
from core.diffusion.weights import Weighting, loss_weight
from core.training.method import (
    Context,
    MethodConfig,
    Progress,
    Regression,
    RegressionMethod,
    Stage,
    noise_of,
)
from students.teacher import load_teacher, student_source, trainable_copy


class ProgressiveConfig(MethodConfig):
    """teacher: its run; start_steps: of the first student, halved down to end_steps; prediction:
    the students' own; weight: see core.diffusion.weights; last_share: budget of each of the last
    two stages relative to the others; conversion_share: likewise for the stage that turns a teacher
    of another prediction into the students'."""

    teacher: str
    start_steps: int = 64
    end_steps: int = 1
    prediction: Literal["v", "x0"] = "v"
    weight: Weighting = "truncated-snr"
    last_share: float = 2.0
    conversion_share: float = 1.0

    @model_validator(mode="after")
    def _halves(self) -> ProgressiveConfig:
        ratio = self.start_steps / self.end_steps if self.end_steps > 0 else 0
        if ratio < 1 or ratio != 2 ** round(torch.tensor(ratio).log2().item()):
            raise ValueError(
                f"start_steps={self.start_steps} cannot be halved to end_steps={self.end_steps}: their ratio must be a power of 2"
            )
        return self


class Progressive(RegressionMethod):
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

    def __init__(self, config: ProgressiveConfig, context: Context):
        super().__init__(config, context)
        run = load_teacher(config.teacher, context)
        self.teacher_name = run.name
        self.source = student_source(run, context)
        self.teacher = run.model
        self.converts = run.spec.prediction != config.prediction
        self.spec = run.spec.model_copy(
            update={"prediction": config.prediction, "discrete_steps": None}
        )
        self.model = trainable_copy(run.model)
        self.model.prediction, self.model.discrete_steps = config.prediction, None
        self.steps: list[int | None] = [None] if self.converts else []  # None: conversion
        n = config.start_steps
        while n >= config.end_steps:
            self.steps.append(n)
            n //= 2
        self.current: int | None = self.steps[0]

    def stages(self) -> list[Stage]:
        last_two = self.steps[-2:] if self.config.end_steps == 1 else []
        return [
            Stage("convert", self.config.conversion_share)
            if n is None
            else Stage(
                f"{2 * n} to {n} steps", self.config.last_share if n in last_two else 1.0, steps=n
            )
            for n in self.steps
        ]

    def begin_stage(self, index: int, average: nn.Module) -> None:
        self.current = self.steps[index]
        if index > 0:
            self.teacher.prediction, self.teacher.discrete_steps = self.model.prediction, None
            self.teacher.network.load_state_dict(average.state_dict())
            network = getattr(
                self.model.network, "module", self.model.network
            )  # behind accelerate's wrapper, if any
            network.load_state_dict(average.state_dict())

    def frozen(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher.network}

    def target(self, batch: Batch, progress: Progress) -> Regression:
        path, kind = self.model.path, self.model.prediction
        eps = noise_of(batch)
        if self.current is None:
            t = batch.rng.uniform("time")
            z = path.mix(batch.x0, eps, t)
            with torch.no_grad():
                x0, eps_guess = self.teacher.denoised(z, t, batch.label)
            target = from_denoised(kind, x0, eps_guess, t, path)
        else:
            N = self.current
            t = on_grid(N)(batch.rng)
            z = path.mix(batch.x0, eps, t)
            x0 = self.two_steps(z, t, N, batch.label)
            c = path.at(t)
            eps_guess = (z - expand(c.alpha, z) * x0) / expand(c.sigma, z)
            target = from_denoised(kind, x0, eps_guess, t, path)
        weight = loss_weight(self.config.weight, kind, t, path)
        return Regression(z, t, target, kind, weight, batch.label)

    @torch.no_grad()
    def two_steps(
        self, z: torch.Tensor, t: torch.Tensor, N: int, label: torch.Tensor | None
    ) -> torch.Tensor:
        """x~ [B, ...] for z [B, ...] at t [B]."""
        path = self.teacher.path
        middle, end = t - 0.5 / N, (t - 1 / N).clamp(min=0)
        z2 = self.teacher.jump(self.teacher.jump(z, t, middle, label), middle, end, label)
        c, c2 = path.at(t), path.at(end)
        ratio = c2.sigma / c.sigma
        return (z2 - expand(ratio, z) * z) / expand(c2.alpha - ratio * c.alpha, z)
