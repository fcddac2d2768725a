"""SoFlow: solution flow models (Luo, Yuan and Liu 2025, arXiv 2512.15657)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from core.data import Batch, ImageSource
from core.diffusion.paths import expand
from core.diffusion.times import TimeConfig, make_time_sampler
from core.model import Model
from core.networks.dropout import same_dropout
from core.noise import Noise
from core.training.method import Loss, Progress, drop_labels, mean_square, noise_of
from flows.flow_map import FlowMap, FlowMapConfig, adaptive


class SoFlowConfig(FlowMapConfig):
    """The keys of SoFlow."""

    time: TimeConfig = TimeConfig(name="logit-normal", mean=-0.4, std=1.0)
    """how t is drawn"""
    end: TimeConfig = TimeConfig(name="logit-normal", mean=-0.4, std=1.0)
    """how the other time is drawn; the later one is t, the earlier one s"""
    flow: float = Field(default=0.75, ge=0, le=1)
    """share of the batch with s = t, where the loss is that of flow matching"""
    ratio_start: float = Field(default=1.0, ge=1e-6, le=1)
    """length of the first step t - l relative to the whole way t - s, at first"""
    ratio_end: float = Field(default=3e-4, ge=1e-6, le=1)
    """and at the end of the budget; between them it shrinks exponentially"""
    power: float = Field(default=0.75, ge=0, le=10)
    """p of the adaptive weight 1 / (error + c)^p; 0: the squared error itself"""
    offset: float = Field(default=1e-3, ge=1e-9, le=1e9)
    """c of the adaptive weight"""


class SoFlow(FlowMap):
    """The solution f(x_t, t, s) = x_t - (t - s) F from t is brought to that from l between s and t,
    where x_l = x_t - (t - l) v is a step along the velocity v:

        error = (f(x_t, t, s) - f^-(x_l, l, s)) / (t - l),

    whose gradient reaches F with a factor of 1 in place of (t - s) / (t - l), as in the authors'
    code. At l = s this is flow matching on the way from t to s; as l goes to t it tends to
    MeanFlow's error, but no derivative is taken. The mean square has the adaptive weight of
    MeanFlow. l comes nearer to t as the budget is spent.

    Deviations: the larger of the two times is t, where the authors' code replaces s by t if it is
    larger. No guidance but a teacher's. Both evaluations are in float32, since their difference is
    divided by t - l.
    """

    Config = SoFlowConfig

    def __init__(
        self,
        config: SoFlowConfig,
        model: Model,
        source: ImageSource | None,
        teacher: Model | None = None,
    ):
        super().__init__(config, model, source, teacher)
        self.draws = make_time_sampler(config.time, 0), make_time_sampler(config.end, 1)

    def times(self, rng: Noise, fraction: float) -> tuple[Tensor, Tensor, Tensor]:
        """t, l and s, all [B] float64; equal where the loss is that of flow matching."""
        c, (a, b) = self.config, (draw(rng) for draw in self.draws)
        t, s = torch.maximum(a, b), torch.minimum(a, b)
        s = torch.where(rng.uniform("flow") < c.flow, t, s)
        ratio = c.ratio_start ** (1 - fraction) * c.ratio_end**fraction
        return t, t - ratio * (t - s), s

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        student, config = self.student, self.config
        (t, middle, s), eps = self.times(batch.rng, progress.fraction), noise_of(batch)
        x_t = student.path.mix(batch.x0, eps, t)
        condition = drop_labels(batch, config.label_dropout, student.spec.num_classes)
        v = self.velocity(batch.x0, eps, x_t, t, condition)
        with torch.no_grad(), same_dropout(x_t):
            x_l = x_t - expand(t - middle, v) * v
            later = student.output(x_l, middle, condition, s, autocast=False)
        F = self.roles["student"].wrapped.output(x_t, t, condition, s, autocast=False).float()
        # (f - f^-) / (t - l) = v - F - (l - s) / (t - l) (F - F^-), without large numbers' difference
        near = (middle - s) / torch.where(t > middle, t - middle, torch.ones_like(t))
        error = v.float() - F.detach() - expand(near, F) * (F.detach() - later.float())
        return Loss(adaptive(mean_square(F - (F.detach() + error)), config.power, config.offset), t)
