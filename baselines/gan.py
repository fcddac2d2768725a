"""A generative adversarial network by the recipe of R3GAN (Huang et al. 2024, arXiv 2501.05441)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.one_step import one_step_spec
from core.data import Batch, ImageSource
from core.networks.convolutional import ConvolutionalConfig, Encoder
from core.processes import average_gradients
from core.training.method import Context, Loss, Method, MethodConfig, Progress, new_model


class GANConfig(MethodConfig):
    """critic: its size; critic_lr: its learning rate, falling linearly to 0 over the budget;
    gamma_start, gamma_end: weight of the gradient penalties, falling geometrically over the
    budget."""

    critic: ConvolutionalConfig = ConvolutionalConfig()
    critic_lr: float = 2e-4
    gamma_start: float = 1.0
    gamma_end: float = 0.1


class GAN(Method):
    """Generator and critic play the relativistic pairing game with zero-centred gradient penalties
    on both sides:

        critic:     min E softplus(D(G(z)) - D(x)) + gamma/2 E ||grad D(x)||^2 + gamma/2 E ||grad
        D(G(z))||^2 generator:  min E softplus(D(x) - D(G(z)))
    (eq. 2 with D's sign turned so that real images score high, and the penalties R1 and R2 of sec.
    3). The game converges locally where the classic one with R1 alone need not. A pair of real and
    generated image has the same label; labels enter the generator as an embedding beside the noise
    and the critic by projection.

    One step of the critic, then one of the generator, on the same real images with fresh noise;
    Adam without momentum (beta_1 = 0; set optimizer.betas and clip = 0 for the generator). The
    generator's moving average is what is sampled.

    Deviations: blocks of two 3x3 convolutions in place of grouped ones
    (core/networks/convolutional.py), no augmentation, and with train.accumulate > 1 the critic
    steps on every micro-batch.
    """

    Config = GANConfig

    def __init__(self, config: GANConfig, context: Context):
        super().__init__(config, context)
        data, self.spec = one_step_spec(context, "generator")
        self.source, self.model = ImageSource(data, context.seed), new_model(self.spec, context)
        torch.manual_seed(context.seed + 1)
        classes = self.model.network.num_classes
        self.critic = Encoder(
            config.critic, data.channels, data.side, classes, 1, projection=True
        ).to(context.device)
        self.optimizer = torch.optim.Adam(
            self.critic.parameters(), lr=config.critic_lr, betas=(0.0, 0.99)
        )

    def frozen(self) -> dict[str, nn.Module]:
        return {"critic": self.critic}

    def state(self) -> dict:
        return {"critic_optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["critic_optimizer"])

    def gamma(self, fraction: float) -> float:
        c = self.config
        return c.gamma_start * (c.gamma_end / c.gamma_start) ** fraction

    def loss(self, batch: Batch, progress: Progress) -> Loss:
        x, label = batch.x0, batch.label
        t = torch.ones(len(x), device=x.device)
        shape = tuple(x.shape[1:])
        with torch.no_grad():
            fake = self.model.output(batch.rng.normal(shape, "critic"), t, label)
        self._train_critic(x, fake, label, progress)

        self.critic.requires_grad_(False)
        fake = self.model.output(batch.rng.normal(shape, "eps"), t, label)
        with torch.no_grad():
            real = self.critic(x, label)
        gap = self.critic(fake, label) - real  # [B, 1]
        self.critic.requires_grad_(True)
        return Loss(F.softplus(-gap).flatten(), t)

    def _train_critic(
        self, real: Tensor, fake: Tensor, label: Tensor | None, progress: Progress
    ) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.critic_lr * (1 - progress.fraction)
        critic_loss(self.critic, real, fake, label, self.gamma(progress.fraction)).mean().backward()
        # The hooks that count see both forwards and their backward; each penalty takes one backward
        # to the image and one through that, which they do not see.
        self.unseen_evals += 3.0 * (len(real) + len(fake))
        average_gradients(self.critic)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def critic_loss(
    critic: nn.Module, real: Tensor, fake: Tensor, label: Tensor | None, gamma: float
) -> Tensor:
    """[B]: softplus(D(G(z)) - D(x)) + gamma/2 (||grad D(x)||^2 + ||grad D(G(z))||^2) for images [B,
    C, S, S]."""
    real, fake = real.detach().requires_grad_(True), fake.detach().requires_grad_(True)
    a, b = critic(real, label), critic(fake, label)
    (grad_real,) = torch.autograd.grad(a.sum(), real, create_graph=True)
    (grad_fake,) = torch.autograd.grad(b.sum(), fake, create_graph=True)
    penalty = grad_real.square().flatten(1).sum(1) + grad_fake.square().flatten(1).sum(1)
    return F.softplus(b - a).flatten() + 0.5 * gamma * penalty
