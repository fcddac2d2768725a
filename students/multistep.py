"""Multistep consistency models (Heek, Hoogeboom and Salimans 2024, arXiv 2403.06807), algorithm
1."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from core.condition import Condition
from core.data import Batch, ImageSource
from core.diffusion.losses import Distance, distance
from core.diffusion.paths import Path, expand
from core.errors import UserError
from core.model import Model
from core.setting import MOST_STEPS, Setting, Steps
from core.training.method import (
    Context,
    Loss,
    Method,
    MethodConfig,
    Progress,
    noise_of,
    regress,
)
from core.training.roles import Role
from students.teacher import (
    boundary_x0,
    check_not_told,
    doubling_steps,
    load_teacher,
    ode_step,
    student_source,
    trainable_copy,
    with_guidance,
)


class MultistepConsistencyConfig(MethodConfig):
    """The keys of multistep consistency."""

    teacher: str
    """run, folder or hub id of the model that the student starts from, and whose ODE it learns"""
    segments: Steps = 4
    """steps that the student is made to be sampled in"""
    solver: Literal["addim", "euler", "heun", "data"] = "addim"
    """a step of the teacher's ODE: adjusted DDIM, DDIM (euler), Heun's; data: no teacher, the noise
    at hand (consistency training)"""
    steps_start: int = Field(default=64, ge=1, le=MOST_STEPS)
    """teacher steps over all segments at first, doubling as the budget is spent"""
    steps_end: int = Field(default=1280, ge=1, le=MOST_STEPS)
    """largest number of teacher steps"""
    distance: Distance = "pseudo-huber"
    """of the difference in v: pseudo-huber, with c = huber sqrt(dimension), or squared"""
    huber: float = Field(default=1e-4, ge=1e-9, le=1e6)
    """of pseudo-huber; next to nothing makes it the norm, as in the paper"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of the student"""

    @model_validator(mode="after")
    def _steps(self) -> MultistepConsistencyConfig:
        if not self.segments <= self.steps_start <= self.steps_end:
            raise ValueError(
                f"segments={self.segments}, steps_start={self.steps_start}, "
                f"steps_end={self.steps_end}: need segments <= steps_start <= steps_end"
            )
        return self


class MultistepConsistency(Method):
    """A consistency function on each of k equal segments of time. For t inside the segment that
    ends at e, and s one teacher step earlier,

        || x^ - invDDIM_{t->e}(DDIM_{s->e}(f^-(z_s, s), z_s), z_t) ||,    x^ = f(z_t, t),

    weighted by SNR + 1, which makes it a loss in v (alg. 1, eq. 5 to 8). The student is sampled by
    k steps of DDIM (alg. 2), each of which ends where the flow does. z_s is a step of the teacher:
    adjusted DDIM (eq. 14) with the variance of x0 given z_t estimated by ||x_teacher - x0||^2 / D.

    Deviations: the number of teacher steps doubles along the budget (the paper anneals from 64 to
    1280), and each segment has the same whole number of them. The student starts from its teacher
    and keeps its prediction, and the weight SNR + 1 is 1 / (sigma c)^2 with x0 = ... - c F where
    the path does not preserve variance.
    """

    Config = MultistepConsistencyConfig

    def __init__(
        self, config: MultistepConsistencyConfig, teacher: Model, source: ImageSource | None
    ):
        if teacher.spec.prediction not in ("eps", "v", "u"):
            raise UserError(
                f"the teacher predicts {teacher.spec.prediction}: a segment that ends at t = 0 "
                "needs "
                "v, eps or u, whose guess of x0 is x itself there"
            )
        if config.solver == "data":
            check_not_told(teacher.spec)
        self.config, self.source, self.teacher = config, source, teacher
        sampling = Setting(sampler="ddim", steps=config.segments, grid="time")
        student = trainable_copy(teacher, config.dropout, sampling=sampling, discrete_steps=None)
        self.roles = {"student": Role(student)}
        self.helpers = {} if config.solver == "data" else {"teacher": teacher.network}

    @classmethod
    def from_config(
        cls, config: MultistepConsistencyConfig, context: Context
    ) -> MultistepConsistency:
        run = load_teacher(config.teacher, context)
        method = cls(config, run.model, student_source(run, context))
        if config.solver == "data":
            method.started_from = {run.name: run.weights_sha256}
        else:
            method.teacher_name = run.name
        return method

    def per_segment(self, fraction: float) -> int:
        """Teacher steps in each segment after that fraction of the budget."""
        steps = doubling_steps(self.config.steps_start, self.config.steps_end, fraction)
        return max(round(steps / self.config.segments), 1)

    def times(self, batch: Batch, fraction: float) -> tuple[Tensor, Tensor, Tensor]:
        """t, s and the segment's end e, [B] float64 each."""
        k, n = self.config.segments, self.per_segment(fraction)
        i = batch.rng.integers(k * n, "time")
        # As multiples of 1 / (k n), so that s = e is an equality and not a matter of rounding
        t, s, end = i + 1, i, i.div(n, rounding_mode="floor") * n
        return tuple(step.double() / (k * n) for step in (t, s, end))

    def step(self, batch: Batch, z: Tensor, eps: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """z_s [B, ...] for z_t = z [B, ...]."""
        path, solver = self.student.path, self.config.solver
        if solver == "data":
            return path.mix(batch.x0, eps, s)
        if solver != "addim":
            return ode_step(self.teacher, solver, z, t, s, batch.condition)
        x0, eps = self.teacher.denoised(z, t, batch.condition)
        variance = (x0 - batch.x0).square().flatten(1).mean(1)
        return adjusted_ddim(path, x0, eps, t, s, variance)

    def target(self, z: Tensor, z_s: Tensor, times: tuple, condition: Condition) -> Tensor:
        """The x0 [B, ...] whose DDIM step from z_t lands where the flow through z_s ends."""
        path, (t, s, end) = self.student.path, times
        x0 = boundary_x0(self.student, z_s, s, condition)
        a, b, c = path.at(t), path.at(s), path.at(end)
        # DDIM_{s->e}, whose ratio of noise is 0 / 0 for s = e = 0, where the step is the identity
        ratio = torch.where(s > end, c.sigma / b.sigma, torch.ones_like(s))
        landed = expand(c.alpha - ratio * b.alpha, z) * x0 + expand(ratio, z) * z_s
        ratio = c.sigma / a.sigma
        return (landed - expand(ratio, z) * z) / expand(c.alpha - ratio * a.alpha, z)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        batch = with_guidance(batch, self.teacher.spec)
        path, eps = self.student.path, noise_of(batch)
        t, s, _ = times = self.times(batch, progress.fraction)
        z = path.mix(batch.x0, eps, t)
        with torch.no_grad():
            goal = self.target(z, self.step(batch, z, eps, t, s), times, batch.condition)
        error = regress(self.roles["student"].wrapped, z, t, goal, "x0", batch.condition)
        c = path.at(t)
        in_v = error * expand((c.alpha.square() + c.sigma.square()) / c.sigma, error)
        return Loss(distance(self.config.distance, in_v, self.config.huber), t)


def adjusted_ddim(
    path: Path, x0: Tensor, eps: Tensor, t: Tensor, s: Tensor, variance: Tensor
) -> Tensor:
    """z_s [B, ...] from a guess of x0 and eps [B, ...] at t, with the noise enlarged by what the
    guess leaves out, of that variance per number [B] (eq. 14)."""
    a, b = path.at(t), path.at(s)
    size = eps.square().flatten(1).mean(1)
    added = (b.alpha - a.alpha * b.sigma / a.sigma).square() * variance / size
    return expand(b.alpha, x0) * x0 + expand((b.sigma.square() + added).sqrt(), x0) * eps
