"""The variational bound against its closed form for Gaussian data, and the density that it
bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from core.diffusion.paths import PATHS, make_path
from core.errors import UserError
from core.noise import Noise
from eval.likelihood.bound import Bound, BoundConfig, log_cell, variational_bound
from teachers.exact import MixtureDenoiser
from tests.helpers.models import model_of

MEAN, STD, D = 0.3, 0.5, 4
ENTROPY = 0.5 * math.log(2 * math.pi * math.e * STD**2)  # nats per dimension


def gaussian(name: str, **spec):
    path, one = make_path(name), torch.ones(1).double()
    network = MixtureDenoiser(path, torch.full((1, 1, 2, 2), MEAN), STD * one, one)
    return model_of(network, path, "v", side=2, codec="identity", **spec)


def samples(count: int) -> torch.Tensor:
    return MEAN + STD * torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def expected(name: str, T: int, variance: str) -> tuple[float, float, float]:
    """The three parts per dimension by hand: posteriors of Gaussians, by adding precisions."""
    c = make_path(name).at(torch.arange(1, T + 1, dtype=torch.float64) / T)
    a, s = c.alpha.numpy(), c.sigma.numpy()
    left = 1 / (1 / STD**2 + a**2 / s**2)  # the variance of x0 given x_k
    prior = 0.5 * (a[-1] ** 2 * (STD**2 + MEAN**2) + s[-1] ** 2 - 1 - np.log(s[-1] ** 2))
    b = a[1:] / a[:-1]
    beta = s[1:] ** 2 - b**2 * s[:-1] ** 2
    q = 1 / (b**2 / beta + 1 / s[:-1] ** 2)  # of x_{k-1} given x_k and x0
    weight = q * a[:-1] / s[:-1] ** 2  # of x0 in its mean
    p = q if variance == "small" else beta
    middle = 0.5 * (np.log(p / q) + (q + weight**2 * left[1:]) / p - 1).sum()
    last = s[0] ** 2 if variance == "large" else q[0]
    decoder = 0.5 * (np.log(2 * np.pi * last) + left[0] / last)
    return float(prior), float(middle), float(decoder)


def bound(model, config: BoundConfig, count: int) -> Bound:
    return variational_bound(model, samples(count), config, Noise(0, torch.arange(count)))


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", PATHS)
def test_each_part_is_its_closed_form(name, variance):
    found = bound(gaussian(name), BoundConfig(steps=12, times=11, variance=variance), 4000)
    for part, known in zip(found, expected(name, 12, variance), strict=True):
        mean, error = float(part.mean()) / D, float(part.std()) / D / 4000**0.5
        assert abs(mean - known) < 4 * error + 1e-9
        assert error < 0.02 * max(1.0, abs(known))


@pytest.mark.parametrize("name", ["vp-linear", "rectified"])
def test_few_terms_estimate_the_whole_sum(name):
    known = expected(name, 200, "small")[1]
    found = bound(gaussian(name), BoundConfig(steps=200, times=10), 4000).middle
    mean, error = float(found.mean()) / D, float(found.std()) / D / 4000**0.5
    assert abs(mean - known) < 4 * error
    assert error < 0.02 * known


def test_the_bound_lies_above_the_entropy_and_tends_to_a_limit():
    """Where sigma^2 grows like t, the first steps of an even grid are never fine: however many
    there are, they lose half of Euler's constant, and a decoder of half the variance that it should
    have (log 1/2 + 2 - 1) / 2 nats per dimension."""
    limit = 0.5 * 0.5772156649 + 0.5 * (math.log(0.5) + 1)
    gaps = []
    for T in (4, 64, 1000, 1_000_000):
        gaps.append(sum(expected("vp-linear", T, "small")) - ENTROPY)
        config = BoundConfig(steps=T, times=min(T - 1, 40))
        total = bound(gaussian("vp-linear"), config, 500).total
        error = float(total.std()) / D / 500**0.5
        assert abs(float(total.mean()) / D - ENTROPY - gaps[-1]) < 4 * error
        assert float(total.mean()) / D > ENTROPY + 0.1
    assert gaps[-1] == pytest.approx(limit, abs=0.002)


def test_cells_of_the_decoder_add_up_to_one_and_keep_their_digits():
    spacing = 1 / 127.5
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, std in ((0.1, 0.3), (-0.999, 0.002), (2.0, 0.05)):
        log_p = log_cell(values, torch.tensor(mean).double(), torch.tensor(std).double(), spacing)
        assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    far = log_cell(*torch.tensor([[0.8], [0.0], [0.02]], dtype=torch.float64), spacing)
    low = (0.8 - spacing / 2) / 0.02
    known = stats.norm.logsf(low) + math.log1p(
        -math.exp(stats.norm.logsf(low + spacing / 0.02) - stats.norm.logsf(low))
    )
    assert float(far) == pytest.approx(known, rel=1e-9)


def test_pixels_are_bounded_by_the_bits_of_a_lookup():
    """A model that knows one image has it at no cost but what the prior and chain lose, and all
    others at a high one."""
    path, one = make_path("vp-cosine"), torch.ones(1).double()
    image = torch.tensor([0, 255, 100, 101], dtype=torch.uint8).view(1, 1, 2, 2)
    network = MixtureDenoiser(path, image.double() / 127.5 - 1, 1e-4 * one, one)
    model = model_of(network, path, "v", side=2)
    config, rng = BoundConfig(steps=20_000, times=40), Noise(0, torch.arange(1))
    assert float(variational_bound(model, image, config, rng).total) < 0.1
    assert float(variational_bound(model, 255 - image, config, rng).total) > 1000


def test_what_is_refused():
    with pytest.raises(ValidationError, match="10 steps has 9 terms"):
        BoundConfig(steps=10, times=10)
    with pytest.raises(UserError, match="knows 1000 times, of which 300"):
        bound(gaussian("vp-linear", discrete_steps=1000), BoundConfig(steps=300), 2)
