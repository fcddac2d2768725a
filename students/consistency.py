"""Consistency distillation (Song, Dhariwal, Chen and Sutskever 2023, arXiv 2303.01469), algorithm 2."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from core.data import Batch
from core.distances import Distance, distance
from core.errors import UserError
from core.grids import make_grid
from core.method import Context, MethodConfig, Progress, Regression, RegressionMethod, noise_of
from core.model import Boundary, Model
from core.paths import expand
from students.teacher import load_teacher, student_source, trainable_copy


class ConsistencyConfig(MethodConfig):
    """teacher: its run; solver: of the teacher's ODE; grid: spacing of the discretisation (core.grids);
    steps_start, steps_end: discretisation steps N, doubling as the budget is spent (equal: fixed, as in the paper's CD);
    target_half_life: images of the target network's average, 0 = stop-gradient of the student itself;
    distance: pseudo-huber (c = huber * sqrt(dimension)) or squared; weight: uniform; inverse-gap, 1 / (t_{n+1} - t_n); or
    output, the same distance taken between network outputs F instead of between images, 1 / c_out of each side;
    t_min, sigma_data: of the boundary (core.model.Boundary)."""

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

    @model_validator(mode="after")
    def _steps(self) -> ConsistencyConfig:
        if not 2 <= self.steps_start <= self.steps_end:
            raise ValueError(f"steps_start={self.steps_start}, steps_end={self.steps_end}: need 2 <= steps_start <= steps_end")
        return self


class Consistency(RegressionMethod):
    """f(x_{t_{n+1}}, t_{n+1}) is brought to f^-(x^_{t_n}, t_n), where the teacher's ODE solver goes from one to the other.

    f has the boundary f(x, t_min) = x by c_skip and c_out (eq. 5); the loss is eq. 7 with d squared or pseudo-Huber
    sqrt(||.||^2 + c^2) - c (Song and Dhariwal 2024, eq. 7, whose c is 0.00054 sqrt(dimension)).

    Deviations: LPIPS, the paper's best d, is trained on photographs and left out. Times are the grid on this repository's
    t, not sigma in [0.002, 80]; the boundary is at t = 0 exactly unless t_min is set, since every path here is finite there,
    and the last step of the teacher's solver goes there by its guess x0. The number of steps may double along the way, which
    the paper does for training without a teacher only (its app. C) and later work for both.
    """

    Config = ConsistencyConfig

    def __init__(self, config: ConsistencyConfig, context: Context):
        super().__init__(config, context)
        run = load_teacher(config.teacher, context)
        self.teacher_name = run.name
        if run.spec.prediction != "v":
            raise UserError(
                f"{config.teacher} predicts {run.spec.prediction}: the consistency function is built on v; convert it with "
                "progressive distillation (end_steps = start_steps) or train the teacher with model.prediction=v"
            )
        self.source = student_source(run, context)
        self.teacher = run.model
        self.spec = run.spec.model_copy(
            update={"boundary_t_min": config.t_min, "boundary_sigma_data": config.sigma_data, "discrete_steps": None}
        )
        self.model = trainable_copy(run.model)
        self.model.boundary, self.model.discrete_steps = Boundary(config.t_min, config.sigma_data), None
        self.averaged = copy.deepcopy(self.model).requires_grad_(False) if config.target_half_life else None

    def networks(self) -> list[nn.Module]:
        averaged = [self.averaged.network] if self.averaged else []
        return [self.model.network, self.teacher.network, *averaged]

    def frozen(self) -> dict[str, nn.Module]:
        return {"target": self.averaged.network} if self.averaged else {}

    def steps(self, fraction: float) -> int:
        """N after that fraction of the budget: doublings from steps_start, spread evenly, and never above steps_end."""
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
        """One step of the teacher's ODE from t to s (both [B]), in the straight coordinates of core.samplers.ode."""
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
            out = self.model.boundary.scalings(t, self.model.path)[1].abs()
            weight = out**-2 if self.config.distance == "squared" else 1 / out
        return Regression(x_t, t, goal, "x0", weight, batch.label)

    def _target_model(self, x: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        model: Model = self.averaged or self.model
        if self.spec.network.dropout == 0:
            return model.x0(x, s, label)
        # The same dropout mask as the student's forward that follows (Song and Dhariwal 2024, app. C)
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            return model.train().x0(x, s, label)

    def distance(self, difference: Tensor) -> Tensor:
        return distance(self.config.distance, difference, self.config.huber)

    def after_step(self, progress: Progress, batch_size: int) -> None:
        if self.averaged is not None:
            decay = 0.5 ** (batch_size / self.config.target_half_life)
            network = getattr(self.model.network, "module", self.model.network)
            for mean, new in zip(self.averaged.network.parameters(), network.parameters(), strict=True):
                mean.data.lerp_(new.data, 1 - decay)


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (x.ndim - 1))
