"""Adversarial diffusion distillation (Sauer et al. 2023, arXiv 2311.17042), on features of the
teacher as in its latent successor (Sauer et al. 2024, arXiv 2403.12015)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from core.data import Batch, ImageSource
from core.diffusion.paths import expand
from core.model import Model
from core.networks.heads import Heads
from core.setting import Setting, Steps
from core.training.adversarial import hinge, slope_penalty
from core.training.method import Context, Loss, Method, Progress
from core.training.roles import OptimizerConfig, Role
from students.teacher import (
    AskedTimesConfig,
    check_not_told,
    load_teacher,
    student_source,
    supervised_by,
    trainable_copy,
)


class AdversarialConfig(AskedTimesConfig):
    """The keys of adversarial diffusion distillation."""

    teacher: str
    """run, folder or hub id of the teacher"""
    steps: Steps = 4
    """times 1, 1 - 1/steps, ... that the student is trained at; it is sampled in so many steps or
    fewer"""
    distillation_weight: float = Field(default=2.5, ge=0, le=1e6)
    """weight of the distance to the teacher's guess, beside the adversarial loss"""
    r1: float = Field(default=1e-5, ge=0, le=1e6)
    """weight of the penalty on the critic's slope in the features of real images"""
    critic: OptimizerConfig | None = None
    """optimiser of the critic's heads; null: the run's"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of the student"""


class AdversarialDistillation(Method):
    """The student denoises noised images of the data in one step, at one of `steps` times s, and
    its x0 shall look real to a critic and be what the teacher says of it:

        critic:   min E max(0, 1 - D(x)) + E max(0, 1 + D(x0)) + r1 E ||grad D(x)||^2
        student:  min -E D(x0) + distillation_weight E c(t) ||x0 - sg teacher(x0 noised to t)||^2

    (eqs. 1 to 4), c(t) = alpha_t, the paper's exponential weighting. D is a head on frozen features,
    and the penalty's slope is taken in these, the head's input (sec. 3.2). D's map of values is
    meaned over places.

    Against divergence: hinge losses vanish for what is told apart already, so a critic that is
    ahead stops, and the penalty bounds its slope; the frozen features keep it from fitting single
    images.

    Deviations: features are those of the teacher's encoder at a random time, of images noised to
    it, and not of DINO (Sauer et al. 2024, sec. 3); one head on the middle of the U-Net, with the
    label embedded, in place of heads on several levels. The times are uniform in [t_min, t_max].
    The heads, a few convolutions, count as a whole network in the price.
    """

    Config = AdversarialConfig

    def __init__(
        self, config: AdversarialConfig, teacher: Model, critic: Heads, source: ImageSource | None
    ):
        self.config, self.source, self.teacher = config, source, teacher
        setting = Setting(sampler="consistency", steps=1)
        student = trainable_copy(teacher, config.dropout, discrete_steps=None, sampling=setting)
        self.roles = {
            "critic": Role(critic, config.critic, averages={}, penalised=True),
            "student": Role(student),
        }
        self.helpers = {"teacher": teacher.network}
        self.critic_features = ("encoder of the teacher",)

    @classmethod
    def from_config(cls, config: AdversarialConfig, context: Context) -> AdversarialDistillation:
        run = load_teacher(config.teacher, context)
        check_not_told(run.spec)
        source = student_source(run, context)
        run.model.check_encoder()
        torch.manual_seed(context.seed + 1)
        heads = Heads(run.model.network.middle_width, run.spec.num_classes).to(context.device)
        method = cls(config, run.model, heads, source)
        supervised_by(method, run)
        return method

    def turn(self, step: int) -> tuple[str, ...]:
        return ("critic", "student")

    def denoise(self, model: Model, batch: Batch, stream: str) -> Tensor:
        """The student's x0 [B, ...] of the batch's images, noised."""
        rng, N = batch.rng, self.config.steps
        s = 1 - rng.integers(N, f"{stream}-step").double() / N
        x_s = model.path.mix(batch.x0, rng.normal(model.spec.shape, stream), s)
        return model.x0(x_s, s, batch.condition)

    def features(self, x0: Tensor, batch: Batch, stream: str) -> tuple[Tensor, Tensor]:
        """What the critic is given of images x0 [B, ...], and the times they were noised to."""
        t = self.config.draw_times(self.teacher, batch.rng, f"{stream}-time")
        noise = batch.rng.normal(tuple(x0.shape[1:]), f"{stream}-noise")
        x_t = self.teacher.path.mix(x0, noise, t)
        return self.teacher.features(x_t, t, batch.condition), t

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        if role == "critic":
            return self.critic_loss(batch)
        return self.student_loss(batch)

    def critic_loss(self, batch: Batch) -> Loss:
        critic, label = self.roles["critic"].model, batch.condition.label
        with torch.no_grad():
            x0 = self.denoise(self.student, batch, "critic")
            made, t = self.features(x0, batch, "made")
            given, _ = self.features(batch.x0, batch, "given")
        given.requires_grad_(True)
        real = critic(given, label)
        loss = hinge(real, real=True) + hinge(critic(made, label), real=False)
        if self.config.r1:
            loss = loss + self.config.r1 * slope_penalty(real, given)
        return Loss(loss, t)

    def student_loss(self, batch: Batch) -> Loss:
        c, path = self.config, self.teacher.path
        x0 = self.denoise(self.roles["student"].wrapped, batch, "eps")
        seen, t = self.features(x0, batch, "seen")
        loss = -self.roles["critic"].model(seen, batch.condition.label).mean(1)
        if c.distillation_weight:
            s = self.config.draw_times(self.teacher, batch.rng, "time")
            noise = batch.rng.normal(tuple(x0.shape[1:]), "noise")
            with torch.no_grad():
                goal = self.teacher.x0(path.mix(x0, noise, s), s, batch.condition)
            error = expand(path.alpha(s).sqrt(), x0) * (x0 - goal)
            loss = loss + c.distillation_weight * error.square().flatten(1).mean(1)
        return Loss(loss.float(), t)
