"""Distillation of a rectified flow into k steps (Liu, Gong and Liu 2023, arXiv
2209.03003, sec. 2.2 and appendix)."""

from __future__ import annotations

from pydantic import Field

from core.data import Batch
from core.data.pairs import PairSource
from core.diffusion.losses import Distance, distance
from core.diffusion.times import on_grid
from core.model import Model
from core.setting import Steps
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


class FlowDistillationConfig(MethodConfig):
    """The keys of a flow's distillation."""

    pairs: str
    """folder of stored pairs, usually of the run named in init"""
    init: str
    """run that the student starts from"""
    steps: Steps = 1
    """k"""
    distance: Distance = "squared"
    """between images: squared, or pseudo-huber with c = huber sqrt(dimension)"""
    huber: float = Field(default=0.00054, ge=1e-9, le=1e6)
    """of pseudo-huber"""


class FlowDistillation(Method):
    """For stored (eps, x0) of a flow, x_t on the straight line between them and t in {1/k, ..., 1}:
    ||x0 - (x_t - t u(x_t, t))||.

    With k = 1 this is the paper's one-step distillation, x0 = eps - u(eps, 1).

    Deviation: the paper's distance on images is LPIPS, which is trained on photographs; here
    squared error or pseudo-Huber.
    """

    Config = FlowDistillationConfig

    def __init__(self, config: FlowDistillationConfig, model: Model, source: PairSource | None):
        self.config, self.source = config, source
        self.roles = {"student": Role(model)}
        self.sample_time = on_grid(config.steps)

    @classmethod
    def from_config(cls, config: FlowDistillationConfig, context: Context) -> FlowDistillation:
        run = context.load(config.init, "ema", context.device)
        model = run.model
        pairs = PairSource(config.pairs, context.seed)
        pairs.check_fits(model.spec)
        student = model.with_network(model.network, null_trained=False)
        method = cls(config, student.train().requires_grad_(True), pairs)
        method.teacher_name = pairs.manifest.run_name
        method.started_from = {run.name: run.weights_sha256}
        return method

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        model, t = self.roles["student"].wrapped, self.sample_time(batch.rng)
        x_t = model.path.mix(batch.x0, noise_of(batch), t)
        error = regress(model, x_t, t, batch.x0, "x0", batch.condition)
        return Loss(distance(self.config.distance, error, self.config.huber), t)
