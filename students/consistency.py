"""Consistency distillation (Song, Dhariwal, Chen and Sutskever 2023, arXiv 2303.01469), algorithm
2."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from core.condition import Condition
from core.data import Batch, ImageSource
from core.diffusion.grids import GRID_NAMES, make_grid
from core.diffusion.losses import Distance, distance
from core.diffusion.parameterisations import ConsistencyFunction
from core.model import Model
from core.setting import MOST_STEPS
from core.training.method import (
    Context,
    Loss,
    Method,
    MethodConfig,
    Progress,
    Stage,
    noise_of,
    regress,
)
from core.training.roles import AverageConfig, Role
from students.teacher import (
    Solver,
    boundary_x0,
    doubling_steps,
    load_teacher,
    ode_step,
    student_source,
    trainable_copy,
    with_guidance,
)


class ConsistencyConfig(MethodConfig):
    """The keys of consistency distillation."""

    LATER = ("dropout",)

    teacher: str
    """run, folder or hub id of the teacher"""
    solver: Solver = "heun"
    """solver of the teacher's ODE"""
    grid: Literal[GRID_NAMES] = "time"
    """spacing of the discretisation (core/diffusion/grids.py)"""
    steps_start: int = Field(default=18, ge=2, le=MOST_STEPS)
    """discretisation steps N at first, doubling as the budget is spent"""
    steps_end: int = Field(default=18, ge=2, le=MOST_STEPS)
    """largest N; equal to steps_start: fixed, as in the paper's distillation"""
    target_half_life: float = Field(default=0.0, ge=0, le=1e30)
    """images of the target network's average; 0: the student itself, without gradient"""
    distance: Distance = "pseudo-huber"
    """between images: pseudo-huber, with c = huber sqrt(dimension), or squared"""
    huber: float = Field(default=0.00054, ge=1e-9, le=1e6)
    """of pseudo-huber"""
    weight: Literal["uniform", "inverse-gap", "output"] = "output"
    """inverse-gap: 1 / (t_{n+1} - t_n); output: the distance between network outputs F in place of
    images, 1 / c_out of each side"""
    t_min: float = Field(default=0.0, ge=0, le=0.5)
    """time of the boundary, where f = x"""
    sigma_data: float = Field(default=1.0, ge=1e-6, le=1e6)
    """standard deviation of the data, for the boundary's scalings"""
    conversion_share: float = Field(default=0.2, ge=1e-6, le=1e6)
    """budget, relative to that of distillation, of the stage before it that a teacher which does
    not predict v needs"""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of the student; both papers' codes switch the teacher's off"""

    @model_validator(mode="after")
    def _steps(self) -> ConsistencyConfig:
        if not self.steps_start <= self.steps_end:
            raise ValueError(
                f"steps_start={self.steps_start}, steps_end={self.steps_end}: "
                "need 2 <= steps_start <= steps_end"
            )
        return self


class Consistency(Method):
    """f(x_{t_{n+1}}, t_{n+1}) is brought to f^-(x^_{t_n}, t_n), where the teacher's ODE solver goes
    from one to the other.

    f has the boundary f(x, t_min) = x by c_skip and c_out (eq. 5); the loss is eq. 7 with d squared
    or pseudo-Huber sqrt(||.||^2 + c^2) - c (Song and Dhariwal 2024, eq. 7, whose c is 0.00054
    sqrt(dimension)).

    Deviations: LPIPS, the paper's best d, is trained on photographs and left out. Times are the
    grid on this repository's t, not sigma in [0.002, 80]; the boundary is at t = 0 exactly unless
    t_min is set, since every path here is finite there, and the last step of the teacher's solver
    goes there by its guess x0. The number of steps may double along the way, which the paper does
    for training without a teacher only (its app. C) and later work for both. A teacher that
    predicts v starts the student with its own denoiser; from any other the student first learns it,
    f(x_t, t) = x0(x_t, t) at continuous times with the squared error between network outputs (the
    paper's teachers have the student's parameterisation).
    """

    Config = ConsistencyConfig

    def __init__(self, config: ConsistencyConfig, teacher: Model, source: ImageSource | None):
        self.config, self.source, self.teacher = config, source, teacher
        function = ConsistencyFunction(t_min=config.t_min, sigma_data=config.sigma_data)
        student = trainable_copy(teacher, config.dropout, prediction=function, discrete_steps=None)
        averages = None
        if config.target_half_life:
            target = AverageConfig(half_life=config.target_half_life, power=None)
            averages = {"ema": None, "target": target}
        self.roles = {"student": Role(student, averages=averages)}
        self.helpers = {"teacher": teacher.network}
        self.converts = teacher.spec.prediction != "v"

    @classmethod
    def from_config(cls, config: ConsistencyConfig, context: Context) -> Consistency:
        run = load_teacher(config.teacher, context)
        method = cls(config, run.model, student_source(run, context))
        method.teacher_name = run.name
        return method

    def stages(self) -> list[Stage]:
        distillation = Stage("train", 1.0)
        convert = Stage("convert", self.config.conversion_share)
        return [convert, distillation] if self.converts else [distillation]

    def begin_stage(self, index: int) -> None:
        if index > 0:
            role = self.roles["student"]
            role.model.network.load_state_dict(role.average().state_dict())

    def steps(self, fraction: float) -> int:
        """N after that fraction of the budget: doublings from steps_start, spread evenly, and never
        above steps_end."""
        return doubling_steps(self.config.steps_start, self.config.steps_end, fraction)

    def times(self, N: int) -> Tensor:
        """[N + 1] times, from 1 down to t_min."""
        grid = make_grid(self.config.grid, self.student.path, N)
        return self.config.t_min + (1 - self.config.t_min) * grid

    def solve(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
        return ode_step(self.teacher, self.config.solver, x, t, s, condition)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        batch = with_guidance(batch, self.teacher.spec)
        if self.converts and progress.stage == 0:
            return self._conversion(batch)
        return self._distillation(batch, progress)

    def _conversion(self, batch: Batch) -> Loss:
        """Towards the teacher's denoiser itself, at times between t_min and 1."""
        t = self.config.t_min + (1 - self.config.t_min) * batch.rng.uniform("time")
        x_t = self.student.path.mix(batch.x0, noise_of(batch), t)
        with torch.no_grad():
            goal = self.teacher.x0(x_t, t, batch.condition)
        error = regress(self.roles["student"].wrapped, x_t, t, goal, "x0", batch.condition)
        weight = self._output_scale(t) ** -2
        return Loss(distance("squared", error, self.config.huber) * weight.float(), t)

    def _output_scale(self, t: Tensor) -> Tensor:
        """[B] |c_out|: what an error of the network's output is multiplied by in the image."""
        return self.student.parameterisation.scalings(t, self.student.path)[1].abs()

    def _distillation(self, batch: Batch, progress: Progress) -> Loss:
        times = self.times(self.steps(progress.fraction)).to(batch.x0.device)
        n = batch.rng.integers(len(times) - 1, "time")
        t, s = times[n], times[n + 1]
        x_t = self.student.path.mix(batch.x0, noise_of(batch), t)
        with torch.no_grad():
            x_s = self.solve(x_t, t, s, batch.condition)
            goal = self._target(x_s, s, batch.condition)
        weight = torch.ones_like(t)
        if self.config.weight == "inverse-gap":
            weight = 1 / (t - s)
        elif self.config.weight == "output":
            out = self._output_scale(t)
            weight = out**-2 if self.config.distance == "squared" else 1 / out
        error = regress(self.roles["student"].wrapped, x_t, t, goal, "x0", batch.condition)
        return Loss(distance(self.config.distance, error, self.config.huber) * weight.float(), t)

    def _target(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        model, role = self.student, self.roles["student"]
        if self.config.target_half_life:
            model = model.with_network(role.average("target"))
        return boundary_x0(model, x, s, condition)
