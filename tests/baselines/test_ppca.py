"""PPCA against scikit-learn's, and the network as the Gaussian it claims to be."""

from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import PCA

from baselines.ppca import fit
from core.condition import Condition
from core.errors import UserError
from core.sampling.sample import sample_images
from core.setting import Setting
from lab import load
from tests.helpers.tiny import train_tiny


def correlated(count: int = 400, size: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mixing + mixing[0]


def test_fit_has_the_likelihood_and_covariance_of_scikit_learn():
    x = correlated()
    mean, U, scales, rest = fit(x, 5)
    theirs = PCA(5, svd_solver="full").fit(x.numpy())
    # scikit-learn divides by N - 1 where the likelihood's maximum divides by N
    cov = torch.from_numpy(theirs.get_covariance()) * (len(x) - 1) / len(x)
    ours = U @ torch.diag(scales.square() - rest.square()) @ U.T + rest.square() * torch.eye(
        12, dtype=torch.float64
    )
    assert torch.allclose(ours, cov, rtol=1e-9, atol=1e-9)
    assert torch.allclose(mean, torch.from_numpy(theirs.mean_), rtol=1e-12)

    def likelihood(c: torch.Tensor) -> float:
        return float(torch.distributions.MultivariateNormal(mean, c).log_prob(x).mean())

    best = likelihood(ours)
    for other in (ours * 1.02, ours * 0.98, ours + 0.02 * torch.eye(12, dtype=torch.float64)):
        assert likelihood(other) < best


def test_fit_refuses_more_directions_than_there_can_be():
    with pytest.raises(UserError, match="network.latent=12"):
        fit(correlated(), 12)


def test_trained_network_is_the_gaussian_of_each_class(tmp_path):
    """The network is affine, so its Jacobian A gives the covariance A A^T exactly: compared with
    scikit-learn on the images."""
    network = {"name": "affine", "latent": 6}
    train_tiny(tmp_path / "ppca", "ppca", own_network=network, log={"steps": 1})
    run = load(tmp_path / "ppca")
    assert (run.train_evals, run.train_images) == (0.0, 1348)
    data = run.data.load()
    for label in (3, run.spec.num_classes):
        x = data.images[data.labels == label] if label < run.spec.num_classes else data.images
        theirs = PCA(6, svd_solver="full").fit((x.double() / 127.5 - 1).flatten(1).numpy())
        given = torch.full((1,), label)
        t = torch.ones(1)

        def generate(noise: torch.Tensor, given=given, t=t) -> torch.Tensor:
            return run.model.output(noise.view(1, 1, 8, 8), t, Condition(given)).flatten()

        A = torch.autograd.functional.jacobian(generate, torch.zeros(64)).double()
        wanted = torch.from_numpy(theirs.get_covariance()) * (len(x) - 1) / len(x)
        assert torch.allclose(A @ A.T, wanted, atol=2e-5), float((A @ A.T - wanted).abs().max())
        assert torch.allclose(
            generate(torch.zeros(64)).double(), torch.from_numpy(theirs.mean_), atol=1e-6
        )


def test_more_than_one_step_is_refused(tmp_path):
    train_tiny(
        tmp_path / "ppca",
        "ppca",
        own_network={"name": "affine", "latent": 6},
        log={"steps": 1},
    )
    with pytest.raises(UserError, match="1 discrete times"):
        sample_images(
            load(tmp_path / "ppca").model, Setting(sampler="ddim", steps=2), torch.arange(2)
        )
    with pytest.raises(UserError, match="log.steps=2"):
        train_tiny(
            tmp_path / "other",
            "ppca",
            own_network={"name": "affine", "latent": 6},
            log={"steps": 2},
        )
