"""What the methods that learn a flow map share: a network that is told two times, and the velocity
that they start from."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from core.condition import Condition
from core.data import Batch, ImageSource
from core.diffusion.parameterisations import from_denoised
from core.errors import UserError
from core.model import Model
from core.networks.dropout import same_dropout
from core.setting import GuidanceScale
from core.training.flow_teacher import FlowTeacher, copy_fitting, load_flow_teacher
from core.training.method import Context, Method, MethodConfig, images_and_spec, new_model
from core.training.roles import Role


class FlowMapConfig(MethodConfig):
    """The keys that the flow maps share."""

    label_dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of labels replaced by the null label"""
    teacher: str | None = None
    """run whose velocity takes the place of the data's; null: from scratch"""
    guidance: GuidanceScale = 1.0
    """scale of classifier-free guidance in the teacher's velocity; 1.0 is off"""

    @model_validator(mode="after")
    def _guided(self) -> FlowMapConfig:
        if self.guidance != 1.0 and self.teacher is None:
            raise ValueError(
                f"guidance={self.guidance:g} is that of the teacher's velocity: name a teacher"
            )
        return self


class FlowMap(Method):
    """F(x_t, t, s) is the mean velocity between s and t, and X(x_t) = x_t - (t - s) F where the
    flow arrives at s <= t. From a teacher the student starts from what of the teacher's weights
    fits its network."""

    def __init__(
        self,
        config: MethodConfig,
        model: Model,
        source: ImageSource | None,
        teacher: Model | None = None,
    ):
        if model.spec.prediction != "mean-velocity" or not model.spec.network.second_time:
            raise UserError(
                "the method learns a mean velocity: set model.prediction=mean-velocity and "
                "model.network.second_time=true"
            )
        self.config, self.source = config, source
        self.roles = {"student": Role(model)}
        self.teacher = None
        if teacher is not None:
            self.helpers = {"teacher": teacher.network}
            self.teacher = FlowTeacher(teacher, model.path, config.guidance)

    @classmethod
    def from_config(cls, config: MethodConfig, context: Context) -> FlowMap:
        data, spec = images_and_spec(context, config.label_dropout)
        student, source = new_model(spec, context), ImageSource(data, context.seed)
        if config.teacher is None:
            return cls(config, student, source)
        run = load_flow_teacher(config.teacher, context, spec, config.guidance)
        copy_fitting(student.network, run.model.network)
        method = cls(config, student, source, run.model)
        method.teacher_name = run.name
        return method

    def velocity(
        self, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, condition: Condition
    ) -> Tensor:
        """dx/dt [B, ...] at x_t: the teacher's, or that of the straight way from x0 to eps."""
        if self.teacher is not None:
            return self.teacher(x_t, t, condition)
        return from_denoised("u", x0, eps, t, self.student.path)

    @torch.no_grad()
    def own(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The student's own velocity F(x, t, t) [B, ...]."""
        with same_dropout(x):
            return self.student.output(x, t, condition, t)

    def best_velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The velocity at a point of which no data are known: the teacher's, or the student's
        own."""
        if self.teacher is not None:
            return self.teacher(x, t, condition)
        return self.own(x, t, condition)


def adaptive(error: Tensor, power: float, offset: float) -> Tensor:
    """error [B] with the weight 1 / (error + offset)^power, without gradient (Geng et al. 2025,
    eq. 22)."""
    return error / (error.detach() + offset) ** power


def square(difference: Tensor) -> Tensor:
    """[B, ...] -> [B], summed."""
    return difference.square().flatten(1).sum(1)


def rows(batch: Batch, which: Tensor) -> Batch:
    """The samples that `which` marks (bool [B]), without their random numbers."""
    condition = Condition(*(None if part is None else part[which] for part in batch.condition))
    eps = None if batch.eps is None else batch.eps[which]
    return Batch(batch.x0[which], condition, batch.rng, eps)
