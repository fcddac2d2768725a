"""Adversarial post-training of any diffusion model or student to one step (D2O, Zheng et al. 2025,
arXiv 2506.09376)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from core.condition import Condition
from core.data import Batch, ImageSource
from core.errors import UserError
from core.model import Model
from core.networks.convolutional import ConvolutionalConfig, Encoder
from core.noise import Noise
from core.setting import Setting
from core.training.adversarial import penalised_critic_loss, relativistic_gap
from core.training.augmentation import Augmentation, augmented
from core.training.method import Context, Loss, Method, MethodConfig, Progress
from core.training.roles import OptimizerConfig, Role
from students.teacher import (
    check_not_told,
    load_teacher,
    student_source,
    supervised_by,
    trainable_copy,
)


class PostTrainingConfig(MethodConfig):
    """The keys of adversarial post-training."""

    init: str
    """run, folder or hub id of the model that is trained further"""
    start: float | None = Field(default=None, gt=0, le=1)
    """time that the student is told, whose input is noise of that time's sigma; null: the model's
    own, which is 1 unless it was made otherwise"""
    freeze: bool = False
    """keep all convolutions but the first and the last as they are"""
    critic: ConvolutionalConfig = ConvolutionalConfig()
    """the critic's size"""
    critic_optimizer: OptimizerConfig = OptimizerConfig(lr=2e-4, betas=(0.0, 0.99), clip=0.0)
    """its optimiser"""
    gamma: float = Field(default=0.1, ge=1e-9, le=1e9)
    """weight of the gradient penalties"""
    augment: tuple[Augmentation, ...] = ()
    """how images are changed before the critic sees them, real and made"""
    critic_first: int = Field(default=0, ge=0)
    """steps that the critic learns alone before the student's first"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of the student"""


class PostTraining(Method):
    """A trained network, asked once at pure noise, plays a GAN's generator, and nothing is
    distilled (Zheng et al. 2025): what it learned as a denoiser is what the game starts from. The
    game is the GAN baseline's, relativistic pairing with R1 and R2 (core/training/adversarial.py),
    as in the adversarial finish of Align Your Flow (Sabour et al. 2025):

        critic:   min E softplus(D(G(z)) - D(x)) + gamma/2 (E ||grad D(x)||^2 + E ||grad D(G)||^2)
        student:  min E softplus(D(x) - D(G(z)))

    G is the network's x0 at `start`, or the map from 1 to 0 of a flow map. With `freeze` the
    convolutions stay as they were trained, as in D2O-F, which freezes most of them; embeddings,
    their modulations, norms and attention learn.

    Against divergence: a critic that knows nothing yet spoils a student that is good already, so it
    may learn alone at first (`critic_first`), and both penalties bound its slope; the student's
    rate is to be a small part of what it was trained with.

    Deviations: the critic starts from nothing, where D2O's sees features of networks that were
    trained on ImageNet, and plays relativistic pairing, where D2O plays the non-saturating game
    with R1 alone. So FID in Inception's features stays honest.
    """

    Config = PostTrainingConfig

    def __init__(
        self, config: PostTrainingConfig, init: Model, critic: nn.Module, source: ImageSource | None
    ):
        self.config, self.source = config, source
        self.critic_features = ("pixels",)
        self.maps = init.parameterisation.second_time
        own = init.spec.setting.options.get("start", 1.0)
        self.start = own if config.start is None else config.start
        if self.maps and self.start != 1:
            raise UserError(f"method.start={self.start:g}: a flow map starts at 1")
        options = {} if self.start == 1 else {"start": self.start}
        sampler = "flow-map" if self.maps else "consistency"
        setting = Setting(sampler=sampler, steps=1, options=options)
        student = trainable_copy(init, config.dropout, discrete_steps=None, sampling=setting)
        frozen = inner_convolutions(student.network) if config.freeze else frozenset()
        self.roles = {
            "critic": Role(critic, config.critic_optimizer, averages={}, penalised=True),
            "student": Role(student, frozen=frozen),
        }

    @classmethod
    def from_config(cls, config: PostTrainingConfig, context: Context) -> PostTraining:
        run = load_teacher(config.init, context, steps=1)
        check_not_told(run.spec)
        source, spec = student_source(run, context), run.spec
        torch.manual_seed(context.seed + 1)
        critic = Encoder(config.critic, *spec.shape[:2], spec.num_classes, 1, projection=True)
        method = cls(config, run.model, critic.to(context.device), source)
        method.started_from = {run.name: run.weights_sha256}
        supervised_by(method, run)
        return method

    def turn(self, step: int) -> tuple[str, ...]:
        return ("critic",) if step < self.config.critic_first else ("critic", "student")

    def generate(self, model: Model, rng: Noise, condition: Condition, stream: str) -> Tensor:
        """x0 [B, ...] of the student."""
        t = torch.full((len(rng),), self.start, dtype=torch.float64, device=rng.indices.device)
        z = rng.normal(model.spec.shape, stream)
        if self.maps:
            return model.map(z, t, torch.zeros_like(t), condition)
        x = z if self.start == 1 else float(model.path.sigma(t[0])) * z
        return model.x0(x, t, condition)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        condition, rng, augment = batch.condition, batch.rng, self.config.augment
        critic, inputs = self.roles["critic"].model, condition.label_alone().inputs()
        t = torch.full((len(rng),), self.start, device=batch.x0.device)
        real = augmented(batch.x0, augment, rng, f"{role}-real")
        if role == "critic":
            with torch.no_grad():
                fake = self.generate(self.student, rng, condition, "critic")
            fake = augmented(fake, augment, rng, "critic-fake")
            gamma = self.config.gamma
            return Loss(penalised_critic_loss(critic, real, fake, inputs, gamma), t)
        fake = self.generate(self.roles["student"].wrapped, rng, condition, "prior")
        fake = augmented(fake, augment, rng, "student-fake")
        with torch.no_grad():
            value = critic(real, **inputs)
        return Loss(relativistic_gap(critic(fake, **inputs), value), t)


def inner_convolutions(network: nn.Module) -> frozenset[str]:
    """Names of the parameters of all convolutions over space but the first and the last."""
    found = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    return frozenset(f"{name}.{kind}" for name in found[1:-1] for kind in ("weight", "bias"))
