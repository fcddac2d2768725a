"""The VAE's bound against torch.distributions and against a model whose likelihood is known;
training; resuming."""

from __future__ import annotations

import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from baselines.vae import negative_elbo
from tests.helpers.tiny import metrics_of, train_tiny

SIZE = {"name": "autoencoder", "widths": [8, 16], "blocks": 1, "latent": 6}


def test_bound_is_that_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    x, given = torch.randn(2, 5, 1, 4, 4, generator=generator, dtype=torch.float64)
    mean, log_variance = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    log_std = torch.tensor(-0.7, dtype=torch.float64)
    reconstruction = Normal(given, log_std.exp()).log_prob(x).flatten(1).sum(1)
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    divergence = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), standard).sum(1)
    wanted = -(reconstruction - divergence) / 16
    assert torch.allclose(negative_elbo(x, given, mean, log_variance, log_std), wanted, rtol=1e-12)


def test_bound_is_tight_where_the_posterior_is_exact():
    """x = w z + s eps has the posterior N(w.x / (w.w + s^2), s^2 / (w.w + s^2)): there -ELBO
    averages to -log p(x), elsewhere above."""
    w = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    s, x = 0.3, torch.tensor([0.4, 1.0, -0.2, 0.1], dtype=torch.float64)
    evidence = (
        -MultivariateNormal(
            torch.zeros(4).double(), torch.outer(w, w) + s**2 * torch.eye(4).double()
        ).log_prob(x)
        / 4
    )
    z = torch.linspace(
        -8, 8, 4001, dtype=torch.float64
    )  # the expectation over the code, by quadrature

    def average(mean: float, variance: float) -> torch.Tensor:
        weights = torch.softmax(-0.5 * z.square(), 0)[:, None]
        code = mean + variance**0.5 * z[:, None]
        decoded = (code * w).view(-1, 1, 2, 2)
        constant = torch.full_like(code, mean), torch.full_like(code, variance).log()
        bounds = negative_elbo(
            x.view(1, 1, 2, 2).expand_as(decoded),
            decoded,
            *constant,
            torch.tensor(s, dtype=torch.float64).log(),
        )
        return (bounds * weights[:, 0]).sum()

    precision = float(w @ w) + s**2
    exact = average(float(w @ x) / precision, s**2 / precision)
    assert abs(float(exact - evidence)) < 1e-9
    assert average(float(w @ x) / precision, 2 * s**2 / precision) > exact + 1e-3
    assert average(0.0, s**2 / precision) > exact + 1e-3


def test_training_lowers_the_bound_and_the_code_is_used(tmp_path):
    trainer = train_tiny(
        tmp_path / "vae",
        "vae",
        own_network=SIZE,
        images=12_800,
        lr=3e-3,
    )
    losses = [row["loss"] for row in metrics_of(tmp_path / "vae")]
    assert losses[-1] < losses[0] - 0.3, losses
    network = trainer.method.roles["student"].average().eval()
    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images = network(noise, torch.ones(64), None, torch.full((64,), 3))
    assert (
        float(images.std(0).mean()) > 0.05
    )  # a decoder that ignores its code gives one image a class
