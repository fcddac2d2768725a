"""Adversarial diffusion distillation (Sauer et al. 2023, arXiv 2311.17042), on features of a named
network, or of the teacher as in its latent successor (Sauer et al. 2024, arXiv 2403.12015)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from core.data import Batch, ImageSource
from core.diffusion.paths import expand
from core.model import Model
from core.networks.heads import LevelHeads
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

TEACHER = "teacher"


class AdversarialConfig(AskedTimesConfig):
    """The keys of adversarial diffusion distillation."""

    teacher: str
    """run, folder or hub id of the teacher"""
    steps: Steps = 4
    """times 1, 1 - 1/steps, ... that the student is trained at; it is sampled in so many steps or
    fewer"""
    first: float | None = Field(default=None, gt=0, le=1)
    """share of the samples at time 1, the others alike at the other times; null: 1 / steps"""
    features: str = Field(default=TEACHER, min_length=1, max_length=200)
    """what the critic sees: 'teacher', whose encoder is shown noised images; or, shown clean ones,
    an extractor's name, torchvision/NAME or timm/NAME, whose weights must be at hand"""
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

    (eqs. 1 to 4), c(t) = alpha_t, the paper's exponential weighting. D is a head on each level of
    frozen features; its map of values is meaned over places, the losses are summed over heads, and
    the penalty's slope is taken in the features, the heads' input (sec. 3.2).

    The paper's features are DINO's, of clean images: `features: timm/vit_small_patch14_dinov2.lvd142m`
    where they are at hand. By default they are those of the teacher's encoder at a random time, of
    images noised to it (Sauer et al. 2024, sec. 3), which needs no second network. What the critic
    saw is in the run and its rows, and a sweep does not measure in it.

    What is made of noised images of the data looks real, so at equal shares over four times the
    critic has little to tell apart, and the first step stays a blurred mean: `first` gives time 1 a
    larger share, `t_max` keeps the critic's noise from hiding what it is to see, and the distance
    to the teacher's guess, itself a mean, is to weigh less against one head than against the
    paper's many.

    Against divergence: hinge losses vanish for what is told apart already, so a critic that is
    ahead stops, and the penalty bounds its slope; the frozen features keep it from fitting single
    images.

    Deviations: the teacher's encoder shows one level, the middle, where Sauer et al. 2024 take
    several; heads are of two convolutions with the label embedded, without the conditioning on an
    image. The times are uniform in [t_min, t_max]. The heads count as a whole network in the price,
    and so does a feature network, whatever its size.
    """

    Config = AdversarialConfig

    def __init__(
        self,
        config: AdversarialConfig,
        teacher: Model,
        critic: LevelHeads,
        source: ImageSource | None,
        feature_network: nn.Module | None = None,
    ):
        self.config, self.source, self.teacher = config, source, teacher
        setting = Setting(sampler="consistency", steps=1)
        student = trainable_copy(teacher, config.dropout, discrete_steps=None, sampling=setting)
        self.roles = {
            "critic": Role(critic, config.critic, averages={}, penalised=True),
            "student": Role(student),
        }
        self.helpers, self.feature_network = {"teacher": teacher.network}, feature_network
        self.critic_features = ("encoder of the teacher",)
        if feature_network is not None:
            self.helpers["features"] = feature_network
            self.critic_features = (config.features,)

    @classmethod
    def from_config(cls, config: AdversarialConfig, context: Context) -> AdversarialDistillation:
        run = load_teacher(config.teacher, context)
        check_not_told(run.spec)
        source = student_source(run, context)
        if config.features == TEACHER:
            run.model.check_encoder()
            network, widths = None, (run.model.network.middle_width,)
        else:
            network = context.feature_network(config.features, run.spec, context.device)
            widths = network.widths
        torch.manual_seed(context.seed + 1)
        heads = LevelHeads(widths, run.spec.num_classes).to(context.device)
        method = cls(config, run.model, heads, source, network)
        supervised_by(method, run)
        return method

    def turn(self, step: int) -> tuple[str, ...]:
        return ("critic", "student")

    def denoise(self, model: Model, batch: Batch, stream: str) -> Tensor:
        """The student's x0 [B, ...] of the batch's images, noised."""
        rng, N, first = batch.rng, self.config.steps, self.config.first
        step = rng.integers(N, f"{stream}-step")
        if first is not None and N > 1:
            later = 1 + rng.integers(N - 1, f"{stream}-later")
            step = torch.where(rng.uniform(f"{stream}-first") < first, 0, later)
        s = 1 - step.double() / N
        x_s = model.path.mix(batch.x0, rng.normal(model.spec.shape, stream), s)
        return model.x0(x_s, s, batch.condition)

    def features(self, x0: Tensor, batch: Batch, stream: str) -> tuple[list[Tensor], Tensor]:
        """The maps that the critic is given of images x0 [B, ...], and the times [B] that these
        were noised to, 0 for clean ones."""
        if self.feature_network is not None:
            return self.feature_network(x0), torch.zeros(len(x0), device=x0.device)
        t = self.config.draw_times(self.teacher, batch.rng, f"{stream}-time")
        noise = batch.rng.normal(tuple(x0.shape[1:]), f"{stream}-noise")
        x_t = self.teacher.path.mix(x0, noise, t)
        return [self.teacher.features(x_t, t, batch.condition)], t

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
        given = [features.requires_grad_(True) for features in given]
        real, fake = critic(*given, label=label), critic(*made, label=label)
        heads = zip(real, fake, strict=True)
        loss = sum(hinge(high, real=True) + hinge(low, real=False) for high, low in heads)
        if self.config.r1:
            loss = loss + self.config.r1 * slope_penalty(torch.cat(real, 1), given)
        return Loss(loss, t)

    def student_loss(self, batch: Batch) -> Loss:
        c, path = self.config, self.teacher.path
        x0 = self.denoise(self.roles["student"].wrapped, batch, "eps")
        seen, t = self.features(x0, batch, "seen")
        values = self.roles["critic"].model(*seen, label=batch.condition.label)
        loss = -sum(of_one.mean(1) for of_one in values)
        if c.distillation_weight:
            s = self.config.draw_times(self.teacher, batch.rng, "time")
            noise = batch.rng.normal(tuple(x0.shape[1:]), "noise")
            with torch.no_grad():
                goal = self.teacher.x0(path.mix(x0, noise, s), s, batch.condition)
            error = expand(path.alpha(s).sqrt(), x0) * (x0 - goal)
            loss = loss + c.distillation_weight * error.square().flatten(1).mean(1)
        return Loss(loss.float(), t)
