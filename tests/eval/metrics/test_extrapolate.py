"""FID infinity on Gaussians, whose true distance is known while the distance of n images is too
large."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.errors import UserError
from eval.metrics.distances import Statistics, frechet_distance, resampled_distances, statistics
from eval.metrics.extrapolate import fid_infinity, sizes_for

D = 16
STD = np.linspace(0.5, 1.5, D)
SHIFT = 0.2  # in every dimension
# Closed form for independent dimensions, against a reference of mean 0 and standard deviation 1.
TRUE = D * SHIFT**2 + ((STD - 1) ** 2).sum()
REFERENCE = Statistics(np.zeros(D), np.eye(D))


def drawn(n: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, D)) * STD + SHIFT)


def test_intercept_is_the_true_distance():
    plain, extrapolated = [], []
    for seed in range(60):
        x = drawn(400, seed)
        plain.append(frechet_distance(statistics(x), REFERENCE))
        extrapolated.append(fid_infinity(x, REFERENCE, 10, seed))
    error = np.std(extrapolated, ddof=1) / np.sqrt(60)
    bias = np.mean(plain) - TRUE
    assert bias > 4 * np.std(plain, ddof=1) / np.sqrt(60)  # the distance at n = 400 is too large
    assert np.mean(extrapolated) == pytest.approx(TRUE, abs=3 * error + 0.1 * bias)
    assert error < bias / 2  # or the line above would say nothing


def test_same_distribution_is_at_distance_zero():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2000, D)))
    plain = frechet_distance(statistics(x), REFERENCE)
    assert abs(fid_infinity(x, REFERENCE, 15)) < 0.25 * plain


def test_sizes():
    assert sizes_for(50_000, 2048, 3) == [5000, 27500, 50000]
    assert sizes_for(1000, 64, 5) == [128, 346, 564, 782, 1000]
    with pytest.raises(UserError, match="at least 8192 images"):
        sizes_for(5000, 2048, 15)
    with pytest.raises(UserError, match="at least 3 points"):
        sizes_for(5000, 64, 2)


def test_subsets_are_measured_without_replacement():
    x = drawn(200, 0)
    for size in (64, 200):
        chosen = torch.randperm(200, generator=torch.Generator().manual_seed(size))[:size]
        count = torch.zeros(200, dtype=torch.float64)
        count[chosen] = 1
        expected = frechet_distance(statistics(x[chosen]), REFERENCE)
        assert float(resampled_distances(x, REFERENCE, [count])[0]) == pytest.approx(
            expected, rel=1e-8
        )


def test_line_is_fitted_to_the_inverse(monkeypatch):
    seen = []

    def exact(features, reference, counts):
        sizes = [int(c.sum()) for c in counts]
        assert all(set(c.tolist()) <= {0.0, 1.0} for c in counts)
        seen.extend(sizes)
        return torch.tensor([7.0 + 300.0 / n for n in sizes], dtype=torch.float64)

    monkeypatch.setattr("eval.metrics.extrapolate.resampled_distances", exact)
    assert fid_infinity(drawn(400, 0), REFERENCE, 6) == pytest.approx(7.0, rel=1e-9)
    assert seen == sizes_for(400, D, 6)
