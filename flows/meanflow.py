"""MeanFlow (Geng, Deng, Bai, Kolter and He 2025, arXiv 2505.13447), algorithm 1."""

from __future__ import annotations

from pydantic import Field

from core.data import Batch, ImageSource
from core.diffusion.parameterisations import from_denoised
from core.diffusion.paths import expand
from core.diffusion.times import TimeConfig, make_pair_sampler
from core.errors import UserError
from core.model import Model
from core.networks.dropout import same_dropout
from core.training.derivatives import Derivative, jvp
from core.training.method import (
    Context,
    Loss,
    Method,
    MethodConfig,
    Progress,
    drop_labels,
    images_and_spec,
    new_model,
    noise_of,
)
from core.training.roles import Role


class MeanFlowConfig(MethodConfig):
    """The keys of MeanFlow."""

    time: TimeConfig = TimeConfig(name="logit-normal", mean=-0.4, std=1.0)
    """how each of the two times is drawn; the later one is t, the earlier one s"""
    unequal: float = Field(default=0.25, ge=0, le=1)
    """share of the batch with s < t; at s = t the loss is that of flow matching"""
    power: float = Field(default=1.0, ge=0, le=10)
    """p of the adaptive weight 1 / (||error||^2 + c)^p; 0: the squared error itself"""
    offset: float = Field(default=1e-3, ge=1e-9, le=1e9)
    """c of the adaptive weight"""
    derivative: Derivative = "forward"
    """of the network along the flow: forward-mode, or a central difference of two evaluations"""
    label_dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of labels replaced by the null label"""


class MeanFlow(Method):
    """The network F(x_t, t, s) learns the mean velocity between s and t by the MeanFlow identity,

        F = v - (t - s) dF/dt,    dF/dt = v dF/dx + dF/dt at fixed s (eq. 6 and 8),

    whose right side, with v = eps - x0 for the velocity and F's own derivative, is the target,
    without gradient (eq. 9 to 11). The squared error, summed over the image, has the adaptive
    weight of eq. 22 (app. B.2). The network is told (t, t - s), the best of table 1c.

    Deviations: no guidance inside the target. The derivative is taken in float32 on a forward of
    its own and the error on another, so that the trained forward is an ordinary one for wrappers of
    many processes: one evaluation more per image than a JVP that both share.
    """

    Config = MeanFlowConfig

    def __init__(self, config: MeanFlowConfig, model: Model, source: ImageSource | None):
        if model.spec.prediction != "mean-velocity" or not model.spec.network.second_time:
            raise UserError(
                "the method learns a mean velocity: set model.prediction=mean-velocity and "
                "model.network.second_time=true"
            )
        self.config, self.source = config, source
        self.roles = {"student": Role(model)}
        self.sample_times = make_pair_sampler(config.time, config.unequal)

    @classmethod
    def from_config(cls, config: MeanFlowConfig, context: Context) -> MeanFlow:
        data, spec = images_and_spec(context, config.label_dropout)
        return cls(config, new_model(spec, context), ImageSource(data, context.seed))

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        student, config, path = self.student, self.config, self.student.path
        (t, s), eps = self.sample_times(batch.rng), noise_of(batch)
        x_t = path.mix(batch.x0, eps, t)
        v = from_denoised("u", batch.x0, eps, t, path)
        condition = drop_labels(batch, config.label_dropout, student.spec.num_classes)
        with same_dropout(x_t):
            _, slope = jvp(student, x_t, t, s, v, condition, config.derivative)
        target = v - expand(t - s, v) * slope
        F = self.roles["student"].wrapped.output(x_t, t, condition, s)
        error = (F.float() - target.float()).square().flatten(1).sum(1)
        return Loss(error / (error.detach() + config.offset) ** config.power, t)
