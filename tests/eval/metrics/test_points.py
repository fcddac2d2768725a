"""Distances between points: against closed forms, plans found by a solver, and an exact bias."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import binom

from core.data import load_data
from core.data.densities import Checkerboard, eight_gaussians
from eval.metrics.points import (
    BINS,
    DIRECTIONS,
    MIXED,
    histogram_kl,
    projected,
    sliced_wasserstein,
    stretches,
)


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return sliced_wasserstein(projected(x), stretches(projected(y), len(x)))


def planned(x: np.ndarray, y: np.ndarray) -> float:
    """W2^2 of numbers [N] and [M], equally weighted, by linear programming over all plans."""
    N, M = len(x), len(y)
    rows = np.kron(np.eye(N), np.ones(M))
    columns = np.kron(np.ones(N), np.eye(M))
    given = np.concatenate([np.full(N, 1 / N), np.full(M, 1 / M)])
    cost = np.square(x[:, None] - y).ravel()
    found = linprog(cost, A_eq=np.vstack([rows, columns]), b_eq=given, method="highs")
    assert found.success
    return found.fun


@pytest.mark.parametrize(("N", "M"), [(5, 5), (4, 12), (7, 10), (9, 4)])
def test_the_sliced_distance_is_that_of_the_best_plans(N, M):
    """For sets of any two sizes."""
    generator = torch.Generator().manual_seed(N * M)
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (N, M))
    angles = math.pi * (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS
    squares = [
        planned(x.numpy() @ np.array([np.cos(a), np.sin(a)]), y.numpy() @ [np.cos(a), np.sin(a)])
        for a in angles[::8]
    ]
    part = (projected(x)[::8] - stretches(projected(y), N).mean[::8]).square().mean(1)
    ours = part + stretches(projected(y), N).variance[::8]
    np.testing.assert_allclose(ours, squares, atol=1e-9)


def test_the_sliced_distance_of_gaussians_is_the_closed_form():
    """SW2^2 of N(m, s^2 I) and N(0, 1) in the plane is |m|^2 / 2 + (s - 1)^2."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20_000, 2, generator=generator) for _ in range(2))
    mean, std = torch.tensor([0.6, -0.2]), 1.5
    exact = math.sqrt(0.5 * float(mean.square().sum()) + (std - 1) ** 2)
    assert distance(x * std + mean, y[:10_000]) == pytest.approx(exact, rel=0.03)


def test_the_sliced_distance_of_a_set_from_itself_is_zero_and_shifts_count():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert distance(x, x) == pytest.approx(0, abs=1e-7)
    shift = torch.tensor([0.3, 0.4], dtype=torch.float64)
    assert distance(x + shift, x) == pytest.approx(0.5 / math.sqrt(2), rel=1e-9)


def expected_kl(exact: np.ndarray, N: int) -> float:
    """The mean of the histogram KL over sets of N exact points: each bin's count is binomial."""
    total, counts = 0.0, np.arange(N + 1)
    for share, times in zip(*np.unique(exact[exact > 0].round(15), return_counts=True)):
        given = (1 - MIXED) * counts / N + MIXED * share
        total += times * share * (np.log(share / given) @ binom.pmf(counts, N, share))
    return total


def test_the_histogram_kl_of_exact_points_has_its_known_bias():
    """Its mean over sets is the binomial expectation, near (K - 1) / (2 N)."""
    density, N = Checkerboard(), 10_000
    values = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        values.append(histogram_kl(density.draw(N, generator)[0], density))
    exact = expected_kl(density.shares(BINS).numpy().ravel(), N)
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - exact) < 4 * error < 0.1 * exact
    assert exact == pytest.approx((BINS**2 / 2 - 1) / (2 * N), rel=0.1)


def test_the_histogram_kl_of_another_distribution_is_the_exact_one():
    """Points on half of the board: log 2 in the middle of a large set, but for what is mixed in."""
    density, N = Checkerboard(), 400_000
    points, _ = density.draw(N, torch.Generator().manual_seed(0))
    half = points[points[:, 0] < 0]
    inside = 0.5 * math.log(0.5 / ((1 - MIXED) + MIXED * 0.5))
    outside = 0.5 * math.log(1 / MIXED)
    assert histogram_kl(half, density) == pytest.approx(inside + outside, abs=0.01)
    everywhere = points + 100.0
    assert histogram_kl(everywhere, density) == pytest.approx(math.log(1 / MIXED), rel=1e-9)


def test_points_outside_of_the_window_count_as_points():
    """Half of the points far away: the other half fills each bin half as full."""
    density = eight_gaussians()
    points = load_data("gaussians").images.flatten(1)
    far = torch.cat([points, torch.full_like(points, 1e6)])
    gained = histogram_kl(far, density) - histogram_kl(points, density)
    assert gained == pytest.approx(math.log(2), abs=0.02)
