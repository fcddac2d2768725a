"""A generative adversarial network by the recipe of R3GAN (Huang et al. 2024, arXiv 2501.05441)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.one_step import one_step_spec
from core.data import Batch, ImageSource
from core.model import Model
from core.networks.convolutional import ConvolutionalConfig, Encoder
from core.noise import Noise
from core.training.adversarial import penalised_critic_loss, relativistic_gap
from core.training.augmentation import Augmentation, augmented
from core.training.method import Context, Loss, Method, MethodConfig, Progress, new_model
from core.training.roles import OptimizerConfig, Role


class GANConfig(MethodConfig):
    """The keys of the GAN; the generator's are model.network and optimizer."""

    LATER = ("augment",)

    critic: ConvolutionalConfig = ConvolutionalConfig()
    """the critic's size"""
    critic_lr: float = Field(default=2e-4, gt=0, le=1e30)
    """the critic's learning rate, falling linearly to 0 over the budget"""
    gamma_start: float = Field(default=1.0, ge=1e-9, le=1e9)
    """weight of the gradient penalties at first, falling geometrically over the budget"""
    gamma_end: float = Field(default=0.1, ge=1e-9, le=1e9)
    """that weight at the end"""
    augment: tuple[Augmentation, ...] = ()
    """how images are changed before the critic sees them, real and made"""


class GAN(Method):
    """Generator and critic play the relativistic pairing game with zero-centred gradient penalties
    on both sides:

        critic:     min E softplus(D(G(z)) - D(x))
                        + gamma/2 E ||grad D(x)||^2 + gamma/2 E ||grad D(G(z))||^2
        generator:  min E softplus(D(x) - D(G(z)))

    (eq. 2 with D's sign turned so that real images score high, and the penalties R1 and R2 of sec.
    3). The game converges locally where the classic one with R1 alone need not. A pair of real and
    generated image has the same label; labels enter the generator as an embedding beside the noise
    and the critic by projection.

    One step of the critic, then one of the generator, on the same real images with fresh noise;
    Adam without momentum (beta_1 = 0; set optimizer.betas and clip = 0 for the generator). The
    generator's moving average is what is sampled.

    `augment` shows the critic changed images only, which little data needs: R3GAN raises its
    probability from 0 to 0.55 (its app. C), here every image is changed, as in DiffAugment.

    Against divergence: both penalties bound the critic's slope (`gamma_start`, `gamma_end`); without
    them the game circles. A critic whose loss goes to 0 has learned the data by heart: `augment`.

    Deviations: blocks of two 3x3 convolutions in place of grouped ones
    (core/networks/convolutional.py); the penalties' slope is in the changed image that the critic
    sees, and not in the image before.
    """

    Config = GANConfig

    def __init__(
        self, config: GANConfig, generator: Model, critic: nn.Module, source: ImageSource | None
    ):
        self.config, self.source = config, source
        self.critic_features = ("pixels",)
        adam = OptimizerConfig(lr=config.critic_lr, betas=(0.0, 0.99), decay="linear", clip=0.0)
        self.roles = {
            "critic": Role(critic, adam, averages={}, penalised=True),
            "student": Role(generator),
        }

    @classmethod
    def from_config(cls, config: GANConfig, context: Context) -> GAN:
        data, spec = one_step_spec(context, "generator")
        generator = new_model(spec, context)
        torch.manual_seed(context.seed + 1)
        critic = Encoder(config.critic, *spec.shape[:2], spec.num_classes, 1, projection=True)
        return cls(config, generator, critic.to(context.device), ImageSource(data, context.seed))

    def turn(self, step: int) -> tuple[str, ...]:
        return ("critic", "student")

    def gamma(self, fraction: float) -> float:
        c = self.config
        return c.gamma_start * (c.gamma_end / c.gamma_start) ** fraction

    def shown(self, images: Tensor, rng: Noise, stream: str) -> Tensor:
        """What the critic sees of images [B, C, S, S]."""
        return augmented(images, self.config.augment, rng, stream)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        condition = batch.condition
        real = self.shown(batch.x0, batch.rng, f"{role}-real")
        seen = condition.label_alone().inputs()
        critic, t = self.roles["critic"].model, torch.ones(len(real), device=real.device)
        shape = tuple(real.shape[1:])
        if role == "critic":
            with torch.no_grad():
                fake = self.student.output(batch.rng.normal(shape, "critic"), t, condition)
            fake = self.shown(fake, batch.rng, "critic-fake")
            gamma = self.gamma(progress.fraction)
            return Loss(penalised_critic_loss(critic, real, fake, seen, gamma), t)
        noise = batch.rng.normal(shape, "eps")
        fake = self.roles["student"].wrapped.output(noise, t, condition)
        fake = self.shown(fake, batch.rng, "student-fake")
        with torch.no_grad():
            value = critic(real, **seen)
        return Loss(relativistic_gap(critic(fake, **seen), value), t)
