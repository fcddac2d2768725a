"""The autoencoder of latent diffusion: its loss against torch.distributions and autograd, what
training makes of it, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from core.condition import UNCONDITIONED
from core.data import Batch, load_data
from core.errors import UserError
from core.model import ModelSpec
from core.networks.autoencoder_kl import AutoencoderKLConfig
from core.networks.patches import PatchConfig, PatchCritic
from core.noise import Noise
from core.training.method import Progress
from lab import load
from teachers.autoencoder import Autoencoder, AutoencoderKLMethodConfig, divergence
from tests.helpers.latents import AUTOENCODER
from tests.helpers.runs import weights
from tests.helpers.tiny import metrics_of, train_tiny

NETWORK = AutoencoderKLConfig(latent=2, widths=(8, 8), blocks=1, groups=4, attention=False)


def made(**keys) -> Autoencoder:
    torch.manual_seed(0)
    spec = ModelSpec(network=NETWORK, path="rectified", prediction="x0", discrete_steps=1,
                     channels=1, side=8, num_classes=0)  # fmt: skip
    config = AutoencoderKLMethodConfig(name="autoencoder", **keys)
    return Autoencoder(config, spec.build(), load_data("digits"))


def batch(count: int = 5) -> Batch:
    rng = Noise(0, torch.arange(count))
    return Batch(rng.normal((1, 8, 8), "x0").clamp(-1, 1), UNCONDITIONED, rng)


def test_divergence_is_that_of_torch_distributions():
    mean, log_variance = torch.randn(2, 5, 2, 4, 4, dtype=torch.float64)
    given = Normal(mean, (0.5 * log_variance).exp())
    wanted = kl_divergence(given, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    assert torch.allclose(divergence(mean, log_variance), wanted.flatten(1).sum(1), rtol=1e-12)


@pytest.mark.parametrize("kind, distance", [("l1", F.l1_loss), ("l2", F.mse_loss)])
def test_loss_is_reconstruction_and_divergence_per_number(kind, distance):
    method, b = made(reconstruction=kind, kl_weight=0.25), batch()
    network = method.student.network
    mean, log_variance = network.moments(b.x0)
    z = Normal(mean, (0.5 * log_variance).exp())
    noise = b.rng.normal((2, 4, 4), "posterior")
    image = network.decode(z.mean + z.stddev * noise)
    kl = kl_divergence(z, Normal(0.0, 1.0)).flatten(1).sum(1)
    for i, loss in enumerate(method.loss("student", b, Progress(0, 0, 0.0)).per_sample):
        wanted = distance(image[i], b.x0[i]) + 0.25 * kl[i] / 64
        assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_the_critic_sets_in_as_a_second_stage():
    method, b = made(adversarial_weight=0.5, adversarial_start=0.25), batch()
    assert [stage.share for stage in method.stages()] == [0.25, 0.75]
    method.begin_stage(0)
    assert method.turn(0) == ("student",)
    method.begin_stage(1)
    assert method.turn(0) == ("student", "critic")
    alone = method.loss("student", b, Progress(0, 0, 0.5)).per_sample
    both = method.loss("student", b, Progress(0, 1, 0.5)).per_sample
    image = method.student.network(b.x0, None, None, noise=b.rng.normal((2, 4, 4), "posterior"))[0]
    value = -method.roles["critic"].model(image).mean(1)
    assert torch.allclose(both, alone + 0.5 * value, rtol=1e-4)
    assert not torch.allclose(both, alone, rtol=1e-2)


def test_the_critic_sees_patches():
    """A pixel moves the values of the patches that hold it and, but for the norm, no others; here
    without norms."""
    torch.manual_seed(0)
    critic = PatchCritic(PatchConfig(widths=(8,)), 1)
    image = torch.randn(1, 1, 16, 16)
    other = image.clone()
    other[..., 0, 0] += 1
    moved = (critic(other) - critic(image)).view(8, 8).abs() > 1e-7
    assert moved[0, 0] and not moved[3:].any() and not moved[:, 3:].any()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "autoencoder"
    size = {**AUTOENCODER, "widths": [16, 16]}
    train_tiny(folder, "autoencoder", own_network=size, images=2560, lr=1e-2,
               train={"batch_size": 16})  # fmt: skip
    return folder


def test_training_reconstructs(trained):
    """Better than the mean image does, which is the best without latents."""
    run, data = load(trained), load_data("digits", "test")
    x = run.model.codec.encode(data.images)
    with torch.no_grad():
        image = run.model.network.decode(run.model.network.moments(x)[0])
    assert (image - x).abs().mean() < 0.6 * (x - x.mean(0)).abs().mean()


@pytest.mark.parametrize("which", ["raw", "ema"])
def test_the_scale_is_measured_of_each_network_at_the_end(trained, which):
    """It makes samples of the posterior of variance 1."""
    network = load(trained, which).model.network
    assert float(network.scale) == float(weights(trained, which)["scale"])
    mean, log_variance = network.moments(
        load(trained).model.codec.encode(load_data("digits").images)
    )
    z = network.scale * (mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
    assert float(z.std()) == pytest.approx(1, rel=5e-3)


def test_the_price_counts_the_critic(tmp_path):
    """3 for the autoencoder; in the second half also its critic's forward and backward to the
    image (2), the critic's loss on both (2 times 3), and the forward for it (1)."""
    method = {"adversarial_weight": 0.5, "critic": {"widths": [8]}}
    trainer = train_tiny(tmp_path / "run", "autoencoder", own_network=AUTOENCODER, images=256,
                         method=method)  # fmt: skip
    assert trainer.evals == 256 * 3 + 128 * (2 + 6 + 1)
    assert [line["stage"] for line in metrics_of(tmp_path / "run")][-1] == "adversarial"
    assert load(tmp_path / "run").critic_features == ("pixels",)


@pytest.mark.parametrize("changes, words", [
    ({"data": {"codec": "runs/x"}}, "data.codec=runs/x is no autoencoder"),
    ({"own_network": {"name": "generator", "widths": [8]}}, "model.network.name=autoencoder-kl"),
    ({"own_network": {**AUTOENCODER, "latent": 9}}, "latents of 9x4x4 have more numbers than"),
    ({"own_network": {**AUTOENCODER, "widths": [8] * 5}}, "of side 8 do not divide by 16"),
    ({"own_network": {**AUTOENCODER, "groups": 3}}, "groups=3 does not divide the width 8"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train_tiny(tmp_path / "run", "autoencoder", **{"own_network": AUTOENCODER, **changes})
