"""Scores of outliers against closed forms for Gaussian data, and the sets that they are tried
on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.data import load_data
from core.diffusion.paths import PATHS, make_path
from core.errors import UserError
from core.noise import Noise
from core.setting import Setting
from eval.likelihood.outliers import CHANGES, NOISE, auroc, resized, sets
from eval.likelihood.scores import (
    eps_errors,
    from_half_noise,
    level_times,
    score_norms,
    unusual,
)
from teachers.exact import gaussian_flow, mixture_model
from tests.helpers.models import model_of

MEAN, STD = 0.3, 0.5


def gaussian(name: str):
    one = torch.ones(1).double()
    return mixture_model(
        make_path(name), torch.full((1, 1, 2, 2), MEAN, dtype=torch.float64), STD * one, one
    )


def samples(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return MEAN + STD * torch.randn(count, 1, 2, 2, generator=generator).double()


@pytest.mark.parametrize("name", PATHS)
def test_levels_are_the_same_noise_on_every_path(name):
    model = gaussian(name)
    c = model.path.at(level_times(model, 3))
    torch.testing.assert_close(
        c.sigma / (c.alpha + c.sigma), torch.tensor([0.25, 0.5, 0.75]).double()
    )
    discrete = model_of(model.network, make_path(name), "v", discrete_steps=100)
    ticks = level_times(discrete, 3) * 100
    torch.testing.assert_close(ticks, ticks.round(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_norms_and_errors_of_a_gaussian(name):
    """The norm at alpha x0 by the derivative of a Gaussian's log density; the error of eps is what
    is left of it given x_t, alpha^2 s^2 / (alpha^2 s^2 + sigma^2)."""
    model, x0 = gaussian(name), samples(3000)
    times = level_times(model, 3)
    c = model.path.at(times)
    width = c.alpha**2 * STD**2 + c.sigma**2
    gap = (x0 - MEAN).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(
        score_norms(model, x0, times), gap[:, None] * (c.sigma * c.alpha / width), rtol=1e-9, atol=0
    )
    found = eps_errors(model, x0, times, Noise(0, torch.arange(3000)))
    z = (found.mean(0) - c.alpha**2 * STD**2 / width) / (found.std(0) / 3000**0.5)
    assert float(z.abs().max()) < 4
    part = eps_errors(model, x0[7:9], times, Noise(0, torch.arange(7, 9)))
    torch.testing.assert_close(part, found[7:9])


@pytest.mark.parametrize("name", PATHS)
def test_what_comes_back_from_half_noise_is_the_exact_flow(name):
    model, x0, rng = gaussian(name), samples(5), Noise(0, torch.arange(5))
    back = from_half_noise(model, x0, rng, Setting(sampler="heun", steps=400))
    path, start = model.path, level_times(model, 1)[0]
    x = path.mix(x0, rng.normal((1, 2, 2), "half", dtype=torch.float64), start)
    mean = torch.full((1, 1, 2, 2), MEAN, dtype=torch.float64)
    known = gaussian_flow(path, x, start, torch.zeros_like(start), mean, STD)
    torch.testing.assert_close(back, known, rtol=0, atol=2e-3)
    assert float((back - x0).abs().mean()) > 0.1


def test_unusual_is_the_distance_of_a_gaussian():
    """Squared distances of what the fit was made of average to the number of levels; a fit does not
    see units."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(3, 3, generator=generator).double()
    known = (torch.randn(4000, 3, generator=generator).double() @ mix).exp()
    assert float(unusual(known, known).square().mean()) == pytest.approx(3.0, rel=2e-3)
    scale = torch.tensor([1.0, 10.0, 0.1]).double()
    torch.testing.assert_close(unusual(scale * known, scale * known), unusual(known, known))
    far = known * torch.exp(10 * known.log().std(0))
    assert float(unusual(far, known).min()) > float(unusual(known, known).max())


def test_auroc_is_the_share_of_pairs_in_order():
    generator = torch.Generator().manual_seed(0)
    inside, outside = (torch.randint(0, 9, (n,), generator=generator).double() for n in (40, 70))
    outside += 1
    gaps = (outside[:, None] - inside).numpy()
    pairs = np.where(gaps > 0, 1.0, np.where(gaps == 0, 0.5, 0.0)).mean()
    assert auroc(inside, outside) == pytest.approx(pairs, abs=1e-12)


def test_changed_images_are_what_they_are_called():
    digits = load_data("digits", "test")
    found = sets(digits, 100, seed=0)
    images = digits.images[:100]
    assert set(found) == {*CHANGES, "fashion_mnist"}
    assert all(x.shape == images.shape and x.dtype == torch.uint8 for x in found.values())
    assert torch.equal(found["rotated"].rot90(3, (-2, -1)), images)
    assert torch.equal(found["inverted"].long() + images, torch.full_like(images, 255).long())
    assert torch.equal(found["mirrored"].flip(-2), found["upside-down"].flip(-1))
    assert all(len(image.unique()) == 1 for image in found["constant"])
    assert len(found["constant"].unique()) > 50
    inner = (images > 3 * NOISE) & (images < 255 - 3 * NOISE)
    noise = (found["noised"].double() - images.double())[inner]
    assert float(noise.std()) == pytest.approx(NOISE, rel=0.05)
    assert torch.equal(sets(digits, 10, seed=0)["noised"], found["noised"][:10])
    with pytest.raises(UserError, match="made for images"):
        sets(load_data("gaussians", "test"), 10, seed=0)


def test_resizing_keeps_what_is_constant_and_the_mean():
    grey = torch.full((2, 1, 28, 28), 77, dtype=torch.uint8)
    assert torch.equal(resized(grey, 3, 8), torch.full((2, 3, 8, 8), 77, dtype=torch.uint8))
    images = torch.randint(0, 256, (4, 3, 28, 28), generator=torch.Generator().manual_seed(0))
    small = resized(images.to(torch.uint8), 1, 7)
    assert float(small.double().mean()) == pytest.approx(float(images.double().mean()), abs=2)
