"""Distillation of a rectified flow into k steps (Liu et al. 2023, sec. 2.2 and app. of arXiv
2209.03003)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from core.data import Batch
from core.data.pairs import PairSource
from core.diffusion.distances import Distance, distance
from core.diffusion.times import on_grid
from core.training.method import (
    Context,
    MethodConfig,
    Progress,
    Regression,
    RegressionMethod,
    Spent,
    noise_of,
)


class FlowDistillationConfig(MethodConfig):
    """pairs: made by scripts.pairs, usually of the run named in init, from which the student
    starts; steps: k; distance: squared, or pseudo-huber with c = huber * sqrt(dimension)."""

    pairs: str
    init: str
    steps: int = Field(default=1, ge=1)
    distance: Distance = "squared"
    huber: float = 0.00054


class FlowDistillation(RegressionMethod):
    """For stored (eps, x0) of a flow, x_t on the straight line between them and t in {1/k, ..., 1}:
    ||x0 - (x_t - t u(x_t, t))||.

    With k = 1 this is the paper's one-step distillation, x0 = eps - u(eps, 1).

    Deviation: the paper's distance on images is LPIPS, which is trained on photographs; here
    squared error or pseudo-Huber.
    """

    Config = FlowDistillationConfig

    def __init__(self, config: FlowDistillationConfig, context: Context):
        super().__init__(config, context)
        run = context.load(config.init, "ema", context.device)
        self.source = PairSource(config.pairs, context.seed)
        self.source.check_fits(run.spec)
        self.teacher_name = self.source.manifest.run_name
        self.spec, self.model = run.spec, run.model.train().requires_grad_(True)
        self.sample_time = on_grid(config.steps)

    def spent(self) -> Spent:
        return Spent(self.source.manifest.evals, self.source.manifest.seconds)

    def target(self, batch: Batch, progress: Progress) -> Regression:
        t = self.sample_time(batch.rng)
        x_t = self.model.path.mix(batch.x0, noise_of(batch), t)
        return Regression(x_t, t, batch.x0, "x0", torch.ones_like(t), batch.label)

    def distance(self, difference: Tensor) -> Tensor:
        return distance(self.config.distance, difference, self.config.huber)
