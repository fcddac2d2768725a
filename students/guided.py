"""Distillation of guidance (Meng et al. 2023, arXiv 2210.03142, stage one; the same input in Luo et
al. 2023, arXiv 2310.04378)."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator

from core.data import Batch, ImageSource
from core.diffusion.losses import Weighting, loss_weight
from core.errors import UserError
from core.model import Model
from core.sampling.denoisers import check_guidance
from core.setting import GuidanceScale
from core.training.method import (
    Context,
    Loss,
    Method,
    MethodConfig,
    Progress,
    mean_square,
    noise_of,
    regress,
)
from core.training.roles import Role
from students.teacher import load_teacher, student_source, supervised_by, with_guidance


class GuidedDistillationConfig(MethodConfig):
    """The keys of guided distillation."""

    teacher: str
    """run, folder or hub id of a teacher with classes and a trained null label"""
    low: GuidanceScale = 1.0
    """smallest weight of guidance that the student is told; 1.0 is off"""
    high: GuidanceScale = 5.0
    """largest weight"""
    weight: Weighting = "truncated-snr"
    """weight of the squared error over noise levels (core/diffusion/losses.py)"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of the student"""

    @model_validator(mode="after")
    def _range(self) -> GuidedDistillationConfig:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g} is not smaller than high={self.high:g}")
        return self


class GuidedDistillation(Method):
    """The student is told the weight w of classifier-free guidance, and learns in one evaluation
    what its teacher needs two for,

        || x0_student(x_t, t, c, w) - x0_w ||^2,   x0_w = x0_null + w (x0_c - x0_null)
        (eq. 3 and 4, whose weight is w - 1), w uniform over its range,

    weighted by max(SNR, 1). It starts from the teacher, with an embedding of w that adds nothing at
    first. The paper's second stage is another student whose teacher this one is: `progressive`,
    `consistency` and `multistep-consistency` draw w for a teacher that is told it.

    Deviation: the error is stated in the student's own prediction, that of its teacher, which the
    weight is converted to.
    """

    Config = GuidedDistillationConfig

    def __init__(
        self, config: GuidedDistillationConfig, teacher: Model, source: ImageSource | None
    ):
        check_guidance(teacher.spec, config.high if config.high != 1.0 else config.low)
        if teacher.spec.guidance is not None:
            raise UserError(
                "the teacher is told the weight of guidance already: distil it as it is"
            )
        if teacher.spec.prediction not in ("eps", "x0", "v", "u"):
            raise UserError(f"the teacher predicts {teacher.spec.prediction}: not a denoiser")
        self.config, self.source, self.teacher = config, source, teacher
        self.roles = {"student": Role(told_of_guidance(teacher, config))}
        self.helpers = {"teacher": teacher.network}

    @classmethod
    def from_config(cls, config: GuidedDistillationConfig, context: Context) -> GuidedDistillation:
        run = load_teacher(config.teacher, context)
        torch.manual_seed(context.seed)  # the embedding of the weight is initialised anew
        method = cls(config, run.model, student_source(run, context))
        supervised_by(method, run)
        return method

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        student = self.roles["student"].wrapped
        path, kind, t = student.path, student.spec.prediction, batch.rng.uniform("time")
        told = with_guidance(batch, self.student.spec).condition
        x_t = path.mix(batch.x0, noise_of(batch), t)
        both = batch.condition.beside(batch.condition.without_label(student.spec.num_classes))
        with torch.no_grad():
            F = self.teacher.output(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
            label, null = F.chunk(2)
            w = told.guidance.to(F.dtype).view(-1, *[1] * (F.ndim - 1))
            goal = null + w * (label - null)
        error = regress(student, x_t, t, goal, kind, told)
        return Loss(mean_square(error) * loss_weight(self.config.weight, kind, t, path).float(), t)


def told_of_guidance(teacher: Model, config: GuidedDistillationConfig) -> Model:
    """A trainable copy of the teacher, in a network that is told the weight of guidance."""
    shape = teacher.spec.network
    if "guidance" not in type(shape).model_fields:
        raise UserError(
            f"network {shape.name} cannot be told the weight of guidance: unet, dit and mlp can"
        )
    shape = shape.with_dropout(config.dropout)
    shape = shape.model_copy(update={"guidance": (config.low, config.high)})
    spec = teacher.spec.model_copy(
        update={"network": shape, "null_trained": False, "discrete_steps": None}
    )
    student = spec.build(teacher.codec)
    missing, unexpected = student.network.load_state_dict(
        teacher.network.state_dict(), strict=False
    )
    if unexpected or any(not name.startswith("guidance.") for name in missing):
        raise UserError(f"the teacher's weights do not fit its own network: {missing + unexpected}")
    return student.to(teacher.device).train()
