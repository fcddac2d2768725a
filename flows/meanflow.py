"""MeanFlow (Geng, Deng, Bai, Kolter and He 2025, arXiv 2505.13447), algorithm 1, with the tangent
of improved MeanFlow (Geng et al. 2025, arXiv 2512.02012)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from core.condition import Condition
from core.data import Batch, ImageSource
from core.diffusion.paths import expand
from core.diffusion.times import TimeConfig, make_pair_sampler
from core.errors import UserError
from core.model import Model
from core.networks.dropout import same_dropout
from core.setting import GuidanceScale
from core.training.derivatives import Derivative, jvp
from core.training.method import Loss, MethodConfig, Progress, drop_labels, noise_of
from flows.flow_map import FlowMap, adaptive, square


class MeanFlowConfig(MethodConfig):
    """The keys of MeanFlow."""

    LATER = ("tangent", "teacher", "guidance", "guidance_mix", "guidance_times")

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
    tangent: Literal["target", "own"] = "target"
    """direction of the derivative: the velocity in the target, or the network's own at s = t, as
    in improved MeanFlow"""
    teacher: str | None = None
    """run whose velocity takes the place of the data's; null: from scratch"""
    guidance: GuidanceScale = 1.0
    """omega: weight of classifier-free guidance inside the target; 1.0 is off"""
    guidance_mix: float = Field(default=0.0, ge=0, lt=1)
    """kappa: share of the network's own conditional velocity in the guided one"""
    guidance_times: tuple[
        Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]
    ] = (0.0, 1.0)
    """times t between which the target is guided"""

    @model_validator(mode="after")
    def _guided(self) -> MeanFlowConfig:
        if self.teacher and (self.guidance_mix or self.guidance_times != (0.0, 1.0)):
            raise ValueError(
                "guidance_mix and guidance_times are for training from scratch: a teacher guides "
                "itself, at all times"
            )
        own = not self.teacher and (self.guidance != 1.0 or self.guidance_mix)
        if own and self.label_dropout == 0:
            raise ValueError(
                f"guidance={self.guidance:g}, guidance_mix={self.guidance_mix:g}: the guided "
                "target compares with the null label; set label_dropout above 0"
            )
        return self


class MeanFlow(FlowMap):
    """The network F(x_t, t, s) learns the mean velocity between s and t by the MeanFlow identity,

        F = v - (t - s) dF/dt,    dF/dt = v dF/dx + dF/dt at fixed s (eq. 6 and 8),

    whose right side, with v = eps - x0 for the velocity and F's own derivative, is the target,
    without gradient (eq. 9 to 11). The squared error, summed over the image, has the adaptive
    weight of eq. 22 (app. B.2). The network is told (t, t - s), the best of table 1c.

    Improved MeanFlow: the derivative is taken along the network's own velocity F(x_t, t, t), a
    function of x_t alone, while v in the target stays that of the data; as a regression of F + (t -
    s) dF/dt on v this is the same gradient.

    Guidance inside the target: v becomes omega v + kappa F(x_t, t, t | label) + (1 - omega - kappa)
    F(x_t, t, t | null) (eq. 19 and 21), except where the label was dropped. The student is then
    sampled at one evaluation a step, without guidance.

    From a teacher: v is the teacher's velocity at x_t, guided if guidance says so, and the student
    starts from what of the teacher's weights fits its network.

    Deviations: the derivative is taken in float32 on a forward of its own and the error on another,
    so that the trained forward is an ordinary one for wrappers of many processes: one evaluation
    more per image than a JVP that both share. Improved MeanFlow's velocity head and its tokens for
    the guidance scale are left out: its boundary form needs neither.
    """

    Config = MeanFlowConfig

    def __init__(
        self,
        config: MeanFlowConfig,
        model: Model,
        source: ImageSource | None,
        teacher: Model | None = None,
    ):
        super().__init__(config, model, source, teacher)
        guided = config.guidance != 1.0 or config.guidance_mix > 0
        if guided and not model.spec.told:
            raise UserError(
                f"method.guidance={config.guidance:g}, method.guidance_mix="
                f"{config.guidance_mix:g}: guidance needs classes or captions; 1.0 and 0.0 "
                "are off"
            )
        self.guided = guided and teacher is None
        self.sample_times = make_pair_sampler(config.time, config.unequal)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        student, config, path = self.student, self.config, self.student.path
        (t, s), eps = self.sample_times(batch.rng), noise_of(batch)
        x_t = path.mix(batch.x0, eps, t)
        condition = drop_labels(batch, config.label_dropout, student.spec.num_classes)
        v = self.velocity(batch.x0, eps, x_t, t, condition)
        if self.guided:
            v = self._guided(v, x_t, t, condition)
        tangent = v if config.tangent == "target" else self.own(x_t, t, condition)
        with same_dropout(x_t):
            _, slope = jvp(student, x_t, t, s, tangent, condition, config.derivative)
        target = v - expand(t - s, v) * slope
        F = self.roles["student"].wrapped.output(x_t, t, condition, s)
        error = square(F.float() - target.float())
        return Loss(adaptive(error, config.power, config.offset), t)

    def _guided(self, v: Tensor, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The data's velocity v [B, ...] with guidance."""
        config, null = self.config, self.student.spec.num_classes
        omega, kappa, without = config.guidance, config.guidance_mix, condition.without_label(null)
        if kappa:
            twice, times = torch.cat([x_t, x_t]), torch.cat([t, t])
            with_label, without_label = self.own(twice, times, condition.beside(without)).chunk(2)
        else:
            with_label, without_label = v, self.own(x_t, t, without)
        guided = omega * v + kappa * with_label + (1 - omega - kappa) * without_label
        first, last = config.guidance_times
        inside = (t >= first) & (t <= last) & condition.tells(null)
        return torch.where(inside.view(-1, *[1] * (v.ndim - 1)), guided, v)
