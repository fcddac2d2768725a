"""Points of the plane: their exact densities, and the sets that are drawn from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad
from scipy.stats import chisquare, multivariate_normal

from core.data import DataConfig, load_data
from core.data.densities import Checkerboard, Mixture, eight_gaussians
from core.errors import UserError

NAMES = ("checkerboard", "gaussians")
LOPSIDED = Mixture(
    torch.tensor([[-1.0, 0.3], [0.8, -0.2]]), 0.5, half=4.0, weights=torch.tensor([1.0, 3.0])
)
DENSITIES = {"checkerboard": Checkerboard(), "gaussians": eight_gaussians(), "lopsided": LOPSIDED}


def grid(half: float, side: int) -> torch.Tensor:
    at = ((torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1) * half
    return torch.cartesian_prod(at, at)


@pytest.mark.parametrize("name", DENSITIES)
def test_a_density_integrates_to_one_with_the_stated_moments(name):
    """By the midpoint rule, over a window that cuts through the middle of no square."""
    density, half = DENSITIES[name], 2 * math.sqrt(3)
    x = grid(half, 400)
    weight = density.log_density(x).exp() * (2 * half / 400) ** 2
    assert float(weight.sum()) == pytest.approx(1, abs=5e-4)
    if name != "lopsided":
        mean, square = weight @ x, weight @ x.square()
        np.testing.assert_allclose(mean, 0, atol=1e-9)
        np.testing.assert_allclose(square, 1, atol=2e-3)


@pytest.mark.parametrize("name", DENSITIES)
def test_shares_of_bins_are_integrals_of_the_density(name):
    density = DENSITIES[name]
    bins, fine = 7, 560  # 7 does not divide the board's squares
    values = density.log_density(grid(density.half, fine)).exp() * (2 * density.half / fine) ** 2
    by_hand = values.view(bins, fine // bins, bins, fine // bins).sum((1, 3))
    np.testing.assert_allclose(density.shares(bins), by_hand, atol=1e-4)
    assert float(density.shares(bins).sum()) == pytest.approx(1, abs=1e-5)


def test_a_mixture_has_the_density_of_scipy():
    x = torch.tensor([[0.3, -0.4], [-1.0, 2.0], [5.0, 5.0]], dtype=torch.float64)
    parts = [
        weight * multivariate_normal(mean, 0.25 * np.eye(2)).pdf(x)
        for weight, mean in ((0.25, [-1.0, 0.3]), (0.75, [0.8, -0.2]))
    ]
    np.testing.assert_allclose(LOPSIDED.log_density(x).exp(), sum(parts), rtol=1e-5)

    def pdf(y: float, x: float) -> float:
        return float(LOPSIDED.log_density(torch.tensor([[x, y]])).exp())

    edges = np.linspace(-4, 4, 5)
    area, _ = dblquad(pdf, edges[1], edges[2], edges[2], edges[3], epsabs=1e-6)
    assert float(LOPSIDED.shares(4)[1, 2]) == pytest.approx(area, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_drawn_from_its_density_and_the_splits_differ(name):
    train, test = (load_data(name, split) for split in ("train", "test"))
    assert train.images.shape == (100_000, 2, 1, 1) and train.images.dtype == torch.float32
    assert len(test) == 20_000 and train.sha256 != test.sha256
    assert train.sha256 == load_data(name, "train").sha256
    points, density, bins = train.images.flatten(1).double(), train.density, 12
    expected = density.shares(bins).flatten()
    cell = ((points / density.half + 1) / 2 * bins).floor().long().clamp(0, bins - 1)
    counts = torch.bincount(cell[:, 0] * bins + cell[:, 1], minlength=bins**2)
    many = expected * len(train) > 5
    rest = [[float(v[~many].sum())] if bool((~many).any()) else [] for v in (counts, expected)]
    seen = np.array([*counts[many].tolist(), *rest[0]])
    due = np.array([*expected[many].tolist(), *rest[1]])
    keep = due > 0
    assert seen[~keep].sum() == 0
    assert chisquare(seen[keep], due[keep] / due[keep].sum() * seen[keep].sum()).pvalue > 1e-3


def test_labels_of_gaussians_are_their_components():
    data = load_data("gaussians")
    assert data.num_classes == 8 and data.density.num_classes == 8
    gaps = torch.cdist(data.images.flatten(1).double(), data.density.means)
    assert (gaps.argmin(1) == data.labels).float().mean() > 0.99


def test_keys_of_folders_are_refused():
    with pytest.raises(UserError, match=r"data\.root=/tmp: the points of checkerboard have none"):
        DataConfig(name="checkerboard", root="/tmp").load()
    with pytest.raises(UserError, match=r"data\.side=4: the points of gaussians have none"):
        DataConfig(name="gaussians", side=4).load()
