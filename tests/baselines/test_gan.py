"""The GAN: penalties against finite differences, convergence where the game is known to need them,
resuming to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from baselines.gan import GAN, GANConfig
from core.condition import UNCONDITIONED
from core.data import Batch
from core.networks.convolutional import ConvolutionalConfig, Encoder, GeneratorConfig
from core.noise import Noise
from core.training.adversarial import penalised_critic_loss
from core.training.checkpoints import latest_checkpoint
from core.training.method import Progress
from tests.helpers.models import model_of
from tests.helpers.runs import assert_same_bits, images_of
from tests.helpers.tiny import train_tiny

OPTIONS = dict(
    own_network={"name": "generator", "widths": [8, 16], "blocks": 1, "latent": 6},
    method={"critic": {"widths": [8, 16], "blocks": 1}},
    optimizer={"betas": [0.0, 0.99], "clip": 0.0},
)


def test_penalty_is_the_squared_slope_of_the_critic():
    torch.manual_seed(0)
    critic = Encoder(
        ConvolutionalConfig(widths=(4,), blocks=1), 1, 4, 3, 1, projection=True
    ).double()
    nn.init.normal_(critic.levels[0][1].conv2.weight)
    real, fake = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64)
    label = torch.tensor([0, 2])
    given = penalised_critic_loss(
        critic, real, fake, {"label": label}, 3.0
    ) - penalised_critic_loss(critic, real, fake, {"label": label}, 0.0)

    def slopes(x: torch.Tensor) -> torch.Tensor:
        h, total = 1e-5, torch.zeros(2, dtype=torch.float64)
        for i in range(16):
            step = torch.zeros(16, dtype=torch.float64)
            step[i] = h
            step = step.view(1, 1, 4, 4)
            total += (
                (critic(x + step, label) - critic(x - step, label)).flatten() / (2 * h)
            ).square()
        return total

    with torch.no_grad():
        wanted = 1.5 * (slopes(real) + slopes(fake))
    assert torch.allclose(given.detach(), wanted, rtol=1e-5)


class Line(nn.Module):
    """D(x) = psi x, the critic of the Dirac-GAN (Mescheder et al. 2018)."""

    def __init__(self):
        super().__init__()
        self.psi = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.psi * x


def dirac_game(gamma: float, steps: int = 3000, rate: float = 0.02) -> float:
    """Real data at 0, generated data at theta: where theta ends."""
    critic, theta = Line(), torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    real = torch.zeros(1, 1, dtype=torch.float64)
    for _ in range(steps):
        (g_psi,) = torch.autograd.grad(
            penalised_critic_loss(critic, real, theta, {}, gamma).sum(), critic.psi
        )
        gap = critic(real).detach() - critic(theta)
        (g_theta,) = torch.autograd.grad(nn.functional.softplus(gap).sum(), theta)
        with torch.no_grad():
            critic.psi -= rate * g_psi
            theta -= rate * g_theta
    return float(theta.detach().abs() + critic.psi.detach().abs())


def test_penalised_game_converges_and_the_bare_one_does_not():
    assert dirac_game(1.0) < 1e-3
    assert (
        dirac_game(0.0) > 0.3
    )  # circles, and comes closer only as fast as the discretised steps let it


def test_crash_and_resume_is_equal_to_the_bit(tmp_path):
    """Critic and its optimiser are part of the checkpoint."""
    import core.training.trainer

    train_tiny(tmp_path / "whole", "gan", images=960, **OPTIONS)
    original = core.training.trainer.Trainer.save

    def crash(self):
        original(self)
        if self.images < 960:
            raise RuntimeError("crash")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.training.trainer.Trainer, "save", crash)
        with pytest.raises(RuntimeError, match="crash"):
            train_tiny(tmp_path / "crashed", "gan", images=960, **OPTIONS)
    assert 0 < images_of(latest_checkpoint(tmp_path / "crashed")) < 960
    train_tiny(tmp_path / "crashed", "gan", images=960, **OPTIONS)
    assert_same_bits(tmp_path / "whole", tmp_path / "crashed")


def test_price_counts_every_pass(tmp_path):
    """A step a pair: generator without gradient 1, critic on both 2 x 3, both penalties 2 x 3,
    critic on the real without gradient 1, generator 3, critic as a way to the generator 2."""
    trainer = train_tiny(tmp_path / "gan", "gan", images=64, **OPTIONS)
    assert trainer.evals == 64 * (1 + 6 + 6 + 1 + 3 + 2)


def test_the_critic_sees_augmented_images_only():
    """With `cutout`, each image that it is shown has a hole, real or made, in both losses; and the
    generator's gradient is none where the hole is."""
    torch.manual_seed(0)
    network = GeneratorConfig(widths=(8,), blocks=1, latent=4)
    model = model_of(network.build(1, 8, 0), "rectified", "x0", network=network, discrete_steps=1)
    shown: list[torch.Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shown.append(x)
            return x.flatten(1).sum(1, keepdim=True)

    method = GAN(GANConfig(name="gan", augment=("cutout",)), model, Spy(), None)
    rng = Noise(0, torch.arange(50))
    batch = Batch(rng.normal((1, 8, 8), "x0"), UNCONDITIONED, rng)
    for role in ("critic", "student"):
        method.loss(role, batch, Progress(0, 0, 0.0))
    assert len(shown) == 4
    for x in shown:
        assert ((x == 0).flatten(1).sum(1) >= 4).all()
    assert not any(torch.equal(a == 0, b == 0) for a in shown[:1] for b in shown[1:])
