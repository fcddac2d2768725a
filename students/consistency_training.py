"""Consistency training: CT (Song, Dhariwal, Chen and Sutskever 2023, arXiv 2303.01469), iCT (Song
and Dhariwal 2024, arXiv 2310.14189) and ECT (Geng et al. 2024, arXiv 2406.14548)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from core.data import Batch, ImageSource
from core.diffusion.grids import GRID_NAMES, make_grid
from core.diffusion.losses import Distance, distance, x0_error_scale
from core.diffusion.times import NoiseTimeConfig, make_noise_time_sampler
from core.model import Model
from core.setting import MOST_STEPS
from core.training.method import (
    Context,
    Loss,
    Method,
    MethodConfig,
    Progress,
    noise_of,
    regress,
)
from core.training.roles import AverageConfig, Role
from students.teacher import (
    boundary_x0,
    check_not_told,
    consistency_copy,
    consistency_from_scratch,
    doubling_steps,
    load_teacher,
    student_source,
)

TOP = 80.0  # the papers' largest noise level, which t = 1 stands for in weights


class ConsistencyTrainingConfig(MethodConfig):
    """The keys of consistency training. The defaults are ECT's; the docstring of
    ConsistencyTraining has those of CT and iCT."""

    init: str | None = None
    """run, folder or hub id of a diffusion model to start from; null: from scratch"""
    gap: Literal["ratio", "grid"] = "ratio"
    """how the earlier time s follows from t: by a ratio of noise levels (ECT), or as the next time
    of a grid (CT, iCT)"""
    time: NoiseTimeConfig = NoiseTimeConfig()
    """how t is drawn; on a grid: which share of the samples each of its intervals gets, uniform:
    the same"""
    q: float = Field(default=2.0, gt=1, le=1e6)
    """ratio: s / t = 1 - (1 + k sigmoid(-b t)) / q^stage of noise levels"""
    stages: int = Field(default=8, ge=1, le=100)
    """ratio: number of stages, 1 to this many, spread evenly over the budget"""
    k: float = Field(default=8.0, ge=0, le=1e6)
    """ratio: k above"""
    b: float = Field(default=1.0, ge=0, le=1e6)
    """ratio: b above"""
    grid: Literal[GRID_NAMES] = "edm"
    """grid: spacing of the times (core/diffusion/grids.py)"""
    steps_start: int = Field(default=10, ge=1, le=MOST_STEPS)
    """grid: number of intervals at first"""
    steps_end: int = Field(default=1280, ge=1, le=MOST_STEPS)
    """grid: largest number of intervals"""
    growth: Literal["doubling", "root"] = "doubling"
    """grid: how the number grows with the budget: doubling (iCT), or like a square root (CT)"""
    distance: Distance = "pseudo-huber"
    """between images: pseudo-huber, with c = huber sqrt(dimension), or squared"""
    huber: float = Field(default=1e-6, ge=1e-9, le=1e6)
    """of pseudo-huber; next to nothing makes it the norm"""
    weight: Literal["inverse-gap", "uniform", "output"] = "inverse-gap"
    """inverse-gap: 1 / (difference of noise levels sigma / alpha); output: the distance between
    network outputs in place of images"""
    target_half_life: float = Field(default=0.0, ge=0, le=1e30)
    """images of the target network's average; 0: the student itself, without gradient"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of a student that starts from a run; from scratch model.network.dropout holds"""

    @model_validator(mode="after")
    def _steps(self) -> ConsistencyTrainingConfig:
        if self.steps_start > self.steps_end:
            raise ValueError(
                f"steps_start={self.steps_start} is larger than steps_end={self.steps_end}"
            )
        return self


class ConsistencyTraining(Method):
    """f(x_t, t) is brought to f^-(x_s, s), where x_t and x_s are the same data with the same noise
    (Song et al. 2023, alg. 3), and both forwards draw the same dropout masks.

    - CT: gap=grid growth=root steps_start=2 steps_end=150 time.name=uniform weight=uniform
      distance=squared, with a target_half_life (app. C; eq. 10).
    - iCT: gap=grid growth=doubling steps_start=10 steps_end=1280, log-normal with mean -1.1 and std
      2.0, weight=inverse-gap, huber=0.00054, no average in the target (table 1).
    - ECT: gap=ratio, log-normal, q=2 with 8 stages, or q=256 with one for an hour's run,
      weight=inverse-gap, the norm as distance, init from a diffusion model (sec. 3; eq. 13 to 15).
      At first s = 0, where the target is the image itself.

    Deviations: noise levels sigma / alpha are those of the model's own path, and the boundary is at
    t = 0, not at 0.002; the first time of a grid is t = 1 where the papers have level 80. The
    consistency function is the guess of x0 of the model's own prediction
    (`consistency_function_of`), for v on a variance-preserving path eq. 5 with data of standard
    deviation 1, not 0.5. CT's LPIPS is left out (trained on photographs), and its target average
    has one decay where the paper lets it grow with N. ECT's stages are spread evenly over the
    budget.
    """

    Config = ConsistencyTrainingConfig

    def __init__(
        self, config: ConsistencyTrainingConfig, model: Model, source: ImageSource | None = None
    ):
        self.config, self.source = config, source
        averages = None
        if config.target_half_life:
            target = AverageConfig(half_life=config.target_half_life, power=None)
            averages = {"ema": None, "target": target}
        self.roles = {"student": Role(model, averages=averages)}
        self.sample_time = make_noise_time_sampler(config.time, model.path)

    @classmethod
    def from_config(
        cls, config: ConsistencyTrainingConfig, context: Context
    ) -> ConsistencyTraining:
        if config.init is None:
            return cls(config, *consistency_from_scratch(config.dropout, context))
        run = load_teacher(config.init, context)
        check_not_told(run.spec)
        student = consistency_copy(run.model, config.dropout)
        method = cls(config, student, student_source(run, context))
        method.started_from = {run.name: run.weights_sha256}
        return method

    def steps(self, fraction: float) -> int:
        """Intervals of the grid after that fraction of the budget."""
        start, end = self.config.steps_start, self.config.steps_end
        if self.config.growth == "doubling":
            return doubling_steps(start, end, fraction)
        square = fraction * ((end + 1) ** 2 - start**2) + start**2  # Song et al. 2023, app. C
        return min(max(math.ceil(math.sqrt(square) - 1), 1), end)

    def times(self, batch: Batch, fraction: float) -> tuple[Tensor, Tensor]:
        """t and s [B] float64."""
        if self.config.gap == "ratio":
            t = self.sample_time(batch.rng)
            return t, self.earlier(t, fraction)
        grid = make_grid(self.config.grid, self.student.path, self.steps(fraction))
        grid = grid.to(batch.x0.device)
        n = torch.searchsorted(self._shares(grid).cumsum(0), batch.rng.uniform("time"))
        n = n.clamp(max=len(grid) - 2)
        return grid[n], grid[n + 1]

    def earlier(self, t: Tensor, fraction: float) -> Tensor:
        """s [B] for t [B] after that fraction of the budget, at ECT's ratio of noise levels."""
        c, path = self.config, self.student.path
        stage = 1 + min(int(fraction * c.stages), c.stages - 1)
        level = torch.exp(-path.lam(t))
        ratio = 1 - (1 + c.k * torch.sigmoid(-c.b * level)) / c.q**stage
        s = path.time(path.lam(t) - ratio.clamp(min=1e-30).log())
        # Rounding must not make s later than t.
        return torch.where(ratio > 0, torch.minimum(s, t), torch.zeros_like(t))

    def _shares(self, grid: Tensor) -> Tensor:
        """[N] probability of each interval of a grid: the mass of the log-normal in it (Song and
        Dhariwal 2024, eq. 9)."""
        config = self.config.time
        if config.name == "uniform":
            return torch.full((len(grid) - 1,), 1 / (len(grid) - 1), dtype=grid.dtype).to(grid)
        z = (-self.student.path.lam(grid) - config.mean) / config.std
        z[0], z[-1] = math.inf, -math.inf
        below = torch.special.ndtr(z)
        mass = below[:-1] - below[1:]
        return mass / mass.sum()

    def weight(self, t: Tensor, s: Tensor) -> Tensor:
        """[B] weight of the distance between images."""
        path = self.student.path
        if self.config.weight == "uniform":
            return torch.ones_like(t)
        if self.config.weight == "inverse-gap":
            high, low = torch.exp(-path.lam(t)), torch.exp(-path.lam(s))
            return 1 / (torch.minimum(high, (2 * low).clamp(min=TOP)) - low)
        function = self.student.spec.prediction
        scale = x0_error_scale(function.output or "v", t, path)
        return 1 / scale if self.config.distance == "squared" else scale.rsqrt()

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        config, student = self.config, self.student
        t, s = self.times(batch, progress.fraction)
        eps, target = noise_of(batch), student
        if config.target_half_life:
            target = student.with_network(self.roles["student"].average("target"))
        goal = boundary_x0(target, student.path.mix(batch.x0, eps, s), s, batch.condition)
        x_t = student.path.mix(batch.x0, eps, t)
        error = regress(self.roles["student"].wrapped, x_t, t, goal, "x0", batch.condition)
        weight = self.weight(t, s).float()
        return Loss(distance(config.distance, error, config.huber) * weight, t)
