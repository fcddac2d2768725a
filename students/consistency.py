"""Consistency distillation (Song, Dhariwal, Chen and Sutskever 2023, arXiv 2303.01469), algorithm
2."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from core.data import Batch
from core.diffusion.distances import Distance, distance
from core.diffusion.grids import make_grid
from core.diffusion.paths import expand
from core.model import Boundary, Model
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


class ConsistencyConfig(MethodConfig):
    """teacher: its run; solver: of the teacher's ODE; grid: spacing of the discretisation
    (core.diffusion.grids); steps_start, steps_end: discretisation steps N, doubling as the budget
    is spent (equal: fixed, as in the paper's CD); target_half_life: images of the target network's
    average, 0 = stop-gradient of the student itself; distance: pseudo-huber (c = huber *
    sqrt(dimension)) or squared; weight: uniform; inverse-gap, 1 / (t_{n+1} - t_n); or output, the
    same distance taken between network outputs F instead of between images, 1 / c_out of each side;
    t_min, sigma_data: of the boundary (core.model.Boundary); conversion_share: budget, relative to
    that of distillation, of the stage before it that a teacher which does not predict v needs."""

    teacher: str
    solver: Literal["euler", "heun"] = "heun"
    grid: str = "time"
    steps_start: int = 18
    steps_end: int = 18
    target_half_life: float = 0.0
    distance: Distance = "pseudo-huber"
    huber: float = 0.00054
    weight: Literal["uniform", "inverse-gap", "output"] = "output"
    t_min: float = 0.0
    sigma_data: float = 1.0
    conversion_share: float = 0.2

    @model_validator(mode="after")
    def _steps(self) -> ConsistencyConfig:
        if not 2 <= self.steps_start <= self.steps_end:
            raise ValueError(
                f"steps_start={self.steps_start}, steps_end={self.steps_end}: need 2 <= steps_start <= steps_end"
            )
        return self


class Consistency(RegressionMethod):
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

    def __init__(self, config: ConsistencyConfig, context: Context):
        super().__init__(config, context)
        run = load_teacher(config.teacher, context)
        self.teacher_name = run.name
        self.source = student_source(run, context)
        self.teacher = run.model
        boundary = {"boundary_t_min": config.t_min, "boundary_sigma_data": config.sigma_data}
        self.spec = run.spec.model_copy(
            update={**boundary, "prediction": "v", "discrete_steps": None}
        )
        self.model = trainable_copy(run.model)
        self.model.boundary, self.model.discrete_steps = (
            Boundary(config.t_min, config.sigma_data),
            None,
        )
        self.model.prediction = "v"
        self.converts = run.spec.prediction != "v"
        self.converting = self.converts
        self.averaged = (
            copy.deepcopy(self.model).requires_grad_(False) if config.target_half_life else None
        )

    def networks(self) -> list[nn.Module]:
        averaged = [self.averaged.network] if self.averaged else []
        return [self.model.network, self.teacher.network, *averaged]

    def frozen(self) -> dict[str, nn.Module]:
        return {"target": self.averaged.network} if self.averaged else {}

    def stages(self) -> list[Stage]:
        distillation = Stage("train", 1.0)
        return (
            [Stage("convert", self.config.conversion_share), distillation]
            if self.converts
            else [distillation]
        )

    def begin_stage(self, index: int, average: nn.Module) -> None:
        self.converting = self.converts and index == 0
        if index > 0:
            for model in filter(None, (self.model, self.averaged)):
                network = getattr(
                    model.network, "module", model.network
                )  # behind accelerate's wrapper, if any
                network.load_state_dict(average.state_dict())

    def steps(self, fraction: float) -> int:
        """N after that fraction of the budget: doublings from steps_start, spread evenly, and never
        above steps_end."""
        start, end = self.config.steps_start, self.config.steps_end
        doublings = 0
        while start * 2 ** (doublings + 1) <= end:
            doublings += 1
        return min(start * 2 ** min(int(fraction * (doublings + 1)), doublings), end)

    def times(self, N: int) -> Tensor:
        """[N + 1] times, from 1 down to t_min."""
        grid = make_grid(self.config.grid, self.model.path, N)
        return self.config.t_min + (1 - self.config.t_min) * grid

    def solve(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        """One step of the teacher's ODE from t to s (both [B]), in the straight coordinates of
        core.sampling.solvers.ode."""
        path = self.teacher.path
        x0, eps = self.teacher.denoised(x, t, label)
        end = path.mix(x0, eps, s)
        inner = s > 0
        if self.config.solver == "euler" or not bool(inner.any()):
            return end
        safe = torch.where(inner, s, t)  # a step that ends on clean data is an Euler step
        x0_s, eps_s = self.teacher.denoised(torch.where(_like(inner, x), end, x), safe, label)
        a, b = path.at(t), path.at(s)
        scale_a, scale_b = a.alpha + a.sigma, b.alpha + b.sigma
        dw = b.sigma / scale_b - a.sigma / scale_a
        slope = 0.5 * (eps - x0 + eps_s - x0_s)
        corrected = expand(scale_b, x) * (x / expand(scale_a, x) + expand(dw, x) * slope)
        return torch.where(_like(inner, x), corrected, end)

    def target(self, batch: Batch, progress: Progress) -> Regression:
        return self._conversion(batch) if self.converting else self._distillation(batch, progress)

    def _conversion(self, batch: Batch) -> Regression:
        """The teacher's denoiser itself, at times between t_min and 1."""
        t = self.config.t_min + (1 - self.config.t_min) * batch.rng.uniform("time")
        x_t = self.model.path.mix(batch.x0, noise_of(batch), t)
        with torch.no_grad():
            goal = self.teacher.x0(x_t, t, batch.label)
        return Regression(x_t, t, goal, "x0", self._output_scale(t) ** -2, batch.label)

    def _output_scale(self, t: Tensor) -> Tensor:
        """[B] |c_out|: what an error of the network's output is multiplied by in the image."""
        return self.model.boundary.scalings(t, self.model.path)[1].abs()

    def _distillation(self, batch: Batch, progress: Progress) -> Regression:
        times = self.times(self.steps(progress.fraction)).to(batch.x0.device)
        n = batch.rng.integers(len(times) - 1, "time")
        t, s = times[n], times[n + 1]
        x_t = self.model.path.mix(batch.x0, noise_of(batch), t)
        with torch.no_grad():
            x_s = self.solve(x_t, t, s, batch.label)
            goal = self._target_model(x_s, s, batch.label)
        weight = torch.ones_like(t)
        if self.config.weight == "inverse-gap":
            weight = 1 / (t - s)
        elif self.config.weight == "output":
            out = self._output_scale(t)
            weight = out**-2 if self.config.distance == "squared" else 1 / out
        return Regression(x_t, t, goal, "x0", weight, batch.label)

    def _target_model(self, x: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        model: Model = self.averaged or self.model
        if self.spec.network.dropout == 0:
            return model.x0(x, s, label)
        # The same dropout mask as the student's forward that follows (Song and Dhariwal 2024, app.
        # C)
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            return model.train().x0(x, s, label)

    def distance(self, difference: Tensor) -> Tensor:
        return distance(
            "squared" if self.converting else self.config.distance, difference, self.config.huber
        )

    def after_step(self, progress: Progress, batch_size: int) -> None:
        if self.averaged is not None and not self.converting:
            decay = 0.5 ** (batch_size / self.config.target_half_life)
            network = getattr(self.model.network, "module", self.model.network)
            for mean, new in zip(
                self.averaged.network.parameters(), network.parameters(), strict=True
            ):
                mean.data.lerp_(new.data, 1 - decay)


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (x.ndim - 1))
