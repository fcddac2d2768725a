"""Truncated consistency models, TCM (Lee et al. 2025, arXiv 2410.14895), the second stage."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from core.data import Batch, ImageSource
from core.diffusion.losses import distance
from core.diffusion.parameterisations import ConsistencyFunction
from core.diffusion.paths import Path
from core.errors import UserError
from core.model import Model
from core.noise import Noise
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
    load_teacher,
    student_source,
    trainable_copy,
    with_guidance,
)


class TruncatedConsistencyConfig(MethodConfig):
    """The keys of truncated consistency. Noise levels are sigma / alpha."""

    teacher: str
    """run of the first stage: a consistency model"""
    cut: float = Field(default=1.0, gt=0, le=1e3)
    """noise level t' below which the first stage's model is left to itself"""
    top: float = Field(default=80.0, gt=0, le=1e6)
    """largest noise level"""
    share: float = Field(default=0.25, ge=0, le=1)
    """share of the batch that is at the cut itself"""
    boundary_weight: float = Field(default=0.1, ge=0, le=1e6)
    """weight of samples whose target is the first stage's"""
    freedom: float = Field(default=0.01, gt=0, le=1e6)
    """degrees of freedom of the Student t that the logarithm of the noise level has"""
    location: float = Field(default=0.0, ge=-20, le=20)
    """its centre"""
    scale: float = Field(default=0.2, gt=0, le=1e3)
    """its scale"""
    ratio: float = Field(default=0.999, ge=0, lt=1)
    """r of the gap (1 + 8 sigmoid(-level)) (1 - r) level between two times"""
    huber: float = Field(default=1e-6, ge=1e-9, le=1e6)
    """of the pseudo-Huber distance, c = huber sqrt(dimension)"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of the student"""


class TruncatedConsistency(Method):
    """Consistency training from t' upwards. Below t' stands the frozen model of the first stage,
    f0:

        f = student at t >= t', f0 at t < t';    L = L_C + w_b L_B    (eq. 8 to 10),

    where L_B has the samples whose target is f0's, a share of the batch at t' itself among them,
    and L_C all others. Both are distances between images of the same data and noise at t and
    slightly less, divided by the difference of noise levels, with ECT's gap at a fixed ratio. The
    logarithm of the noise level has a Student t distribution between t' and the largest level. The
    student alone is sampled: at times below t' it is what its first stage was only as far as it has
    not forgotten.

    Deviations: the paper's times are noise levels up to 80, which here are times of the model's own
    path just below t = 1. Its first stage is ECT; here any consistency model will do.
    """

    Config = TruncatedConsistencyConfig

    def __init__(
        self, config: TruncatedConsistencyConfig, teacher: Model, source: ImageSource | None
    ):
        if not isinstance(teacher.spec.prediction, ConsistencyFunction):
            raise UserError(
                f"the first stage predicts {teacher.spec.prediction} and is no consistency model: "
                "name a run of consistency distillation or training as method.teacher"
            )
        if config.cut >= config.top:
            raise UserError(
                f"method.cut={config.cut:g} must be smaller than method.top={config.top:g}"
            )
        self.config, self.source, self.teacher = config, source, teacher
        self.roles = {"student": Role(trainable_copy(teacher, config.dropout))}
        self.helpers = {"teacher": teacher.network}
        self.levels = level_table(config)

    @classmethod
    def from_config(
        cls, config: TruncatedConsistencyConfig, context: Context
    ) -> TruncatedConsistency:
        run = load_teacher(config.teacher, context)
        method = cls(config, run.model, student_source(run, context))
        method.teacher_name = run.name
        return method

    def noise_levels(self, rng: Noise) -> tuple[Tensor, Tensor]:
        """Noise levels of t and s, [B] float64 each."""
        u = rng.uniform("time")
        position = u * (len(self.levels) - 1)
        below = position.long().clamp(max=len(self.levels) - 2)
        table = self.levels.to(u.device)
        level = torch.lerp(table[below], table[below + 1], position - below)
        level = torch.where(
            rng.uniform("boundary") < self.config.share, torch.full_like(u, self.config.cut), level
        )
        gap = (1 + 8 * torch.sigmoid(-level)) * (1 - self.config.ratio)
        return level, level * (1 - gap).clamp(min=0)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        batch = with_guidance(batch, self.student.spec)
        config, path, eps = self.config, self.student.path, noise_of(batch)
        high, low = self.noise_levels(batch.rng)
        t, s = time_of(path, high), time_of(path, low)
        x_s = path.mix(batch.x0, eps, s)
        goal, first = boundary_x0(self.student, x_s, s, batch.condition), low < config.cut
        if bool(first.any()):
            with torch.no_grad():
                goal[first] = self.teacher.x0(x_s[first], s[first], batch.condition.rows(first))
        x_t = path.mix(batch.x0, eps, t)
        error = regress(self.roles["student"].wrapped, x_t, t, goal, "x0", batch.condition)
        weight = torch.where(first, config.boundary_weight, 1.0) / (high - low)
        return Loss(distance("pseudo-huber", error, config.huber) * weight.float(), t)


def time_of(path: Path, level: Tensor) -> Tensor:
    """The time t [B] of a noise level sigma / alpha [B]; 0 for 0."""
    inner = level > 0
    safe = torch.where(inner, level, torch.ones_like(level))
    return torch.where(inner, path.time(-safe.log()).clamp(max=1.0), torch.zeros_like(level))


def level_table(config: TruncatedConsistencyConfig, size: int = 20_001) -> Tensor:
    """[size] noise levels at equal steps of probability: the inverse of the distribution function,
    by the trapezium rule on its density."""
    low, high = math.log(config.cut), math.log(config.top)
    log = torch.linspace(low, high, size, dtype=torch.float64)
    z = (log - config.location) / config.scale
    density = (1 + z.square() / config.freedom).pow(-(config.freedom + 1) / 2)
    below = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, log)])
    below = below / below[-1]
    u = torch.linspace(0, 1, size, dtype=torch.float64)
    k = torch.searchsorted(below, u).clamp(1, size - 1)
    part = (u - below[k - 1]) / (below[k] - below[k - 1])
    return torch.lerp(log[k - 1], log[k], part.clamp(0, 1)).exp()
