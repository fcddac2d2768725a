"""Metrics against closed forms and against small implementations in numpy that share no code with
ours or torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from core.errors import UserError
from eval.features.fidelity import torch_fidelity
from eval.metrics.distances import (
    Statistics,
    bootstrap_std,
    frechet_distance,
    kernel_distance,
    precision_recall,
    statistics,
)


def gaussian(seed: int, D: int = 5) -> Statistics:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(D, D))
    return Statistics(rng.normal(size=D), root @ root.T + 0.1 * np.eye(D))


def with_moments(s: Statistics, n: int, seed: int) -> torch.Tensor:
    """[n, D] features whose sample mean and unbiased sample covariance are exactly those of s."""
    x = np.random.default_rng(seed).normal(size=(n, len(s.mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / (n - 1))).T
    return torch.from_numpy(x @ np.linalg.cholesky(s.cov).T + s.mean)


def test_distance_of_one_dimensional_and_diagonal_gaussians():
    # In one dimension it is (m1 - m2)^2 + (s1 - s2)^2; over independent dimensions it adds up.
    m1, m2, s1, s2 = map(
        np.array, ([1.0, -2.0, 0.0], [0.0, 2.0, 0.5], [1.0, 3.0, 0.2], [2.0, 0.5, 0.2])
    )
    expected = ((m1 - m2) ** 2 + (s1 - s2) ** 2).sum()
    got = frechet_distance(Statistics(m1, np.diag(s1**2)), Statistics(m2, np.diag(s2**2)))
    assert got == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distance_of_correlated_gaussians_from_features(seed):
    a, b = gaussian(seed), gaussian(seed + 10)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(
        a.cov + b.cov - 2 * sqrtm(a.cov @ b.cov).real
    )
    features = with_moments(a, 200, seed), with_moments(b, 300, seed + 1)
    assert frechet_distance(*map(statistics, features)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_broken_features_are_refused():
    with pytest.raises(UserError, match="NaN"):
        statistics(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
    with pytest.raises(UserError, match="at least 2 images"):
        statistics(torch.zeros(1, 4))


def test_kernel_distance_against_double_loop():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), 0.5 + 1.5 * rng.normal(size=(30, 4))

    def k(a, b):
        return (a @ b / 4 + 1) ** 3

    n = len(x)
    same = sum(k(v[i], v[j]) for v in (x, y) for i in range(n) for j in range(n) if i != j) / (
        n * (n - 1)
    )
    cross = sum(k(a, b) for a in x for b in y) / n**2
    assert kernel_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(
        same - 2 * cross, rel=1e-9
    )


def test_precision_and_recall_against_brute_force():
    rng = np.random.default_rng(1)
    fake, real = rng.normal(size=(60, 3)), 0.8 * rng.normal(size=(60, 3)) + 0.7

    def covered(points, balls):
        radius = [
            np.sort(np.linalg.norm(balls - c, axis=1))[3] for c in balls
        ]  # [0] is the point itself
        return np.mean(
            [any(np.linalg.norm(p - c) <= r for c, r in zip(balls, radius)) for p in points]
        )

    precision, recall = precision_recall(torch.from_numpy(fake), torch.from_numpy(real))
    assert precision == pytest.approx(covered(fake, real), abs=1e-6)
    assert recall == pytest.approx(covered(real, fake), abs=1e-6)
    assert (
        precision != recall and 0.1 < precision < 0.95
    )  # a case in which swapping them would show


def test_kernel_distance_averages_over_subsets_of_a_thousand():
    """With more than 1,000 images: unbiased, so zero within its error for equal distributions, and
    right for a shift."""
    rng = np.random.default_rng(2)
    x, y, z = (
        rng.normal(size=(1500, 2)),
        rng.normal(size=(1500, 2)),
        rng.normal(size=(1500, 2)) + [0.6, 0.0],
    )

    def whole(a, b):  # the biased estimate over all pairs, without their diagonal
        k = [((u @ v.T) / 2 + 1) ** 3 for u, v in ((a, a), (b, b), (a, b))]
        off = [(m.sum() - np.trace(m)) / (len(m) * (len(m) - 1)) for m in k[:2]]
        return off[0] + off[1] - 2 * k[2].mean()

    tensors = [torch.from_numpy(v) for v in (x, y, z)]
    assert whole(x, z) > 0.2
    assert kernel_distance(tensors[0], tensors[2]) == pytest.approx(whole(x, z), rel=0.05)
    assert abs(kernel_distance(tensors[0], tensors[1])) < 0.1 * whole(x, z)


@pytest.mark.parametrize(
    "n, m", [(300, 300), (300, 1200), (1200, 1100)], ids=["whole", "one whole", "subsets"]
)
def test_kernel_distance_is_torch_fidelitys(n, m):
    rng = np.random.default_rng(4)
    x, y = (
        torch.from_numpy(rng.normal(size=(n, 6))),
        torch.from_numpy(rng.normal(size=(m, 6)) + 0.3),
    )
    theirs = torch_fidelity().metric_kid.kid_features_to_metric(
        x, y, kid_subsets=50, kid_subset_size=min(1000, n, m), kid_kernel="poly", verbose=False
    )
    sums: dict = {}
    for _ in range(2):  # the second time with what the first left there
        assert kernel_distance(x, y, sums) == pytest.approx(
            theirs["kernel_inception_distance_mean"], rel=1e-9
        )
    kernel_distance(x[:50], y, sums)  # another n draws other images of the reference
    assert kernel_distance(x[:40], y, sums) == pytest.approx(kernel_distance(x[:40], y), rel=1e-12)


def test_the_larger_set_is_cut_for_precision_and_recall():
    rng = np.random.default_rng(3)
    fake, real = (
        torch.from_numpy(rng.normal(size=(40, 3))),
        torch.from_numpy(rng.normal(size=(90, 3))),
    )
    assert precision_recall(fake, real) == precision_recall(fake, real[:40])
    assert precision_recall(fake, real) != precision_recall(fake, real[50:])


def test_bootstrap_resamples_are_the_distance_itself():
    reference, x = gaussian(3), with_moments(gaussian(4), 50, 0)
    generator = torch.Generator().manual_seed(7)
    draws = [torch.randint(50, (50,), generator=generator) for _ in range(6)]
    distances = [frechet_distance(statistics(x[draw]), reference) for draw in draws]
    assert bootstrap_std(x, reference, 6, seed=7) == pytest.approx(
        np.std(distances, ddof=1), rel=1e-6
    )


def test_bootstrap_tells_the_spread_over_fresh_samples():
    truth = gaussian(5)
    reference = Statistics(truth.mean + 0.5, truth.cov)
    rng = np.random.default_rng(0)

    def fresh() -> torch.Tensor:
        return torch.from_numpy(rng.multivariate_normal(truth.mean, truth.cov, size=400))

    spread = np.std([frechet_distance(statistics(fresh()), reference) for _ in range(200)], ddof=1)
    estimates = [bootstrap_std(fresh(), reference, 40, seed) for seed in range(12)]
    assert np.mean(estimates) == pytest.approx(spread, rel=0.2)
    with pytest.raises(UserError, match="at least 2 resamples"):
        bootstrap_std(fresh(), reference, 1)
