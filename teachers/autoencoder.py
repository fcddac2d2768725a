"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, sec. 3.1 and app. G):
images to small latents that diffusion models are then trained in, and back."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from core.data import Batch, ImageData, ImageSource
from core.errors import UserError
from core.model import Model
from core.networks.autoencoder_kl import AutoencoderKL
from core.networks.patches import PatchConfig, PatchCritic
from core.training.adversarial import hinge
from core.training.method import (
    Context,
    Loss,
    Method,
    MethodConfig,
    Progress,
    Stage,
    images_and_spec,
    new_model,
)
from core.training.roles import OptimizerConfig, Role

MEASURED = 10_000  # images that the scale of the latents is measured on


class AutoencoderKLMethodConfig(MethodConfig):
    """The keys of the autoencoder; its sizes are model.network's."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """distance between an image and its reconstruction"""
    kl_weight: float = Field(default=1e-6, ge=0, le=1e6)
    """weight of the divergence from the standard normal distribution, both summed over numbers"""
    adversarial_weight: float = Field(default=0.0, ge=0, le=1e6)
    """weight of the adversarial term, the mean value of the critic's patches; 0 = off"""
    adversarial_start: float = Field(default=0.5, gt=0, lt=1)
    """share of the budget before the adversarial term sets in"""
    critic: PatchConfig = PatchConfig()
    """size of the critic on patches"""
    critic_optimizer: OptimizerConfig | None = None
    """of the critic; null: the run's"""


class Autoencoder(Method):
    """Encoder E to a normal distribution for each latent, decoder D from a sample of it:

        min |x - D(z)| + kl_weight KL(q(z | x) || N(0, I)) - adversarial_weight C(D(z))
        critic: min max(0, 1 - C(x)) + max(0, 1 + C(D(z)))

    (eq. 25, app. G), the first two per number of the image. The critic C gives a value to each
    patch and sets in after `adversarial_start` of the budget, as a second stage. When training
    ends, the scale of the latents is measured on the first 10,000 images: one over the standard
    deviation of all their numbers, sampled from the posterior (app. G); diffusion models see
    latents times that scale.

    Deviations: no perceptual term (the paper's distance in VGG features has weights that are not at
    hand here, and a distance in an extractor's own features would be trained on what sweeps measure
    in), so small textures blur; the reconstruction error is not divided by a learned variance, as
    the authors' code has it with the variance held at 1; the adversarial weight is not balanced by
    the ratio of two gradients, as it is there, since that ratio is of the images that a process
    happens to have. The critic's optimiser is AdamW.

    Sampled like a generator, it decodes noise: what its prior alone gives, which with so small a KL
    weight is no image.
    """

    Config = AutoencoderKLMethodConfig

    def __init__(
        self,
        config: AutoencoderKLMethodConfig,
        model: Model,
        data: ImageData | None,
        seed: int = 0,
    ):
        self.config, self.data, self.seed = config, data, seed
        self.source = ImageSource(data, seed) if data else None
        self.roles = {"student": Role(model)}
        self.adversarial = config.adversarial_weight > 0
        self.stage = 0
        if self.adversarial:
            critic = PatchCritic(config.critic, model.spec.channels)
            critic = critic.to(model.device)
            self.roles["critic"] = Role(critic, config.critic_optimizer, averages={})
            self.critic_features = ("pixels",)

    @classmethod
    def from_config(cls, config: AutoencoderKLMethodConfig, context: Context) -> Autoencoder:
        if context.codec is not None:
            raise UserError("data.codec: an autoencoder is trained on images: remove it")
        data, spec = images_and_spec(context)
        if spec.network.name != "autoencoder-kl":
            raise UserError(
                "this method trains an autoencoder: give model.network.name=autoencoder-kl"
            )
        changes = {"path": "rectified", "prediction": "x0", "discrete_steps": 1}
        model = new_model(spec.model_copy(update=changes), context)
        torch.manual_seed(context.seed + 1)
        return cls(config, model, data.seen_by(0), context.seed)

    def stages(self) -> list[Stage]:
        if not self.adversarial:
            return [Stage("train", 1.0)]
        start = self.config.adversarial_start
        return [Stage("reconstruction", start), Stage("adversarial", 1 - start)]

    def begin_stage(self, index: int) -> None:
        self.stage = index

    def turn(self, step: int) -> tuple[str, ...]:
        return ("student", "critic") if self.stage == 1 else ("student",)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        x, t = batch.x0, torch.ones(len(batch.x0), device=batch.x0.device)
        if role == "critic":
            with torch.no_grad():
                made, _, _ = self._reconstruct(self.student.network, batch)
            critic = self.roles["critic"].wrapped
            real, fake = critic(torch.cat([x, made])).chunk(2)
            return Loss(hinge(real, real=True) + hinge(fake, real=False), t)
        made, mean, log_variance = self._reconstruct(self.roles["student"].prepared, batch)
        error = (x - made).abs() if self.config.reconstruction == "l1" else (x - made).square()
        error = error.flatten(1).mean(1)
        loss = error + self.config.kl_weight * divergence(mean, log_variance) / x[0].numel()
        if progress.stage == 1:
            value = -self.roles["critic"].model(made).float().mean(1)
            loss = loss + self.config.adversarial_weight * value
        return Loss(loss, t)

    def _reconstruct(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(image, mean, log variance) of the batch, float32."""
        x, spec = batch.x0, self.student.spec
        noise = batch.rng.normal(latent_shape(spec), "posterior")
        t = torch.ones(len(x), device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=spec.autocast):
            made = network(x, t, None, noise=noise)
        return tuple(part.float() for part in made)

    @torch.no_grad()
    def finish(self) -> None:
        role = self.roles["student"]
        for network in (role.network, role.average()):
            network.scale.fill_(self._scale(network))

    def _scale(self, network: AutoencoderKL) -> float:
        codec, training = self.student.codec, network.training
        network.eval()
        count, first, second = 0, 0.0, 0.0
        for part in torch.arange(min(MEASURED, len(self.data))).split(256):
            images = codec.encode(self.data.images[part].to(self.student.device))
            mean, log_variance = network.moments(images)
            mean, variance = mean.double(), log_variance.double().exp()
            count += mean.numel()
            first += float(mean.sum())
            second += float((mean.square() + variance).sum())
        network.train(training)
        return (second / count - (first / count) ** 2) ** -0.5

    @torch.no_grad()
    def preview(self, model: Model, count: int) -> Tensor:
        """Images, each beside its reconstruction from the mean of its latents."""
        images = self.data.images[: max(1, count // 2)]
        mean, _ = model.network.moments(model.codec.encode(images.to(model.device)))
        made = model.codec.decode(model.network.decode(mean)).cpu()
        return torch.stack([images, made], 1).flatten(0, 1)


def latent_shape(spec) -> tuple[int, ...]:
    """Of the latents of one image, for the spec of an autoencoder."""
    side = spec.side // spec.network.factor
    return (spec.network.latent, side, side)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """[B]: KL(N(mean, variance) || N(0, I)), summed over the numbers of each sample."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
