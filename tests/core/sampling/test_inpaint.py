"""Inpainting against the conditional distribution of an exact mixture."""

from __future__ import annotations

import pytest
import torch

from core.diffusion.paths import make_path
from core.errors import UserError
from core.noise import Noise
from core.sampling.editing import inpaint
from core.sampling.sample import sample
from core.setting import Setting
from teachers.exact import mixture_model

MEANS = torch.tensor([[-1.0, -0.8], [0.2, 0.9], [1.0, -0.1]], dtype=torch.float64)
STD, WEIGHTS = 0.4, torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
KNOWN = torch.tensor([True, False]).view(2, 1, 1)
VALUE, COUNT = -0.5, 2000


def of_pairs(path: str = "vp-cosine"):
    """A model of two numbers a sample, of which the first says something of the second."""
    return mixture_model(make_path(path), MEANS.view(3, 2, 1, 1), torch.full((3,), STD), WEIGHTS)


def inpainted(**options) -> torch.Tensor:
    """The second numbers [COUNT], the first known to be VALUE; what is not known is nonsense."""
    x0 = torch.tensor([VALUE, float("nan")]).view(1, 2, 1, 1).expand(COUNT, 2, 1, 1)
    setting = Setting(sampler="ddpm", steps=30)
    got = inpaint(of_pairs(), setting, x0, KNOWN, Noise(0, torch.arange(COUNT)), **options)
    assert torch.equal(got[:, 0], x0[:, 0])
    return got[:, 1].flatten().double()


def test_repaint_finds_the_conditional_mean_and_replacement_does_not():
    """E[x2 | x1] of the mixture: its components' means by their posterior at x1, since the two
    numbers are independent within a component."""
    posterior = WEIGHTS * torch.exp(-0.5 * ((VALUE - MEANS[:, 0]) / STD) ** 2)
    posterior = posterior / posterior.sum()
    mean = float(posterior @ MEANS[:, 1])
    errors = {}
    for resample in (1, 24):
        values = inpainted(resample=resample)
        errors[resample] = float((values.mean() - mean).abs() / (values.std() / COUNT**0.5))
    assert errors[24] < 3 and errors[1] > 6, errors


def test_batches_and_stretches():
    """A sample does not depend on its batch, and stretches of several intervals are gone whole."""
    x0 = torch.full((6, 2, 1, 1), VALUE)
    setting, steps = Setting(sampler="ddpm", steps=7), []
    options = {"resample": 3, "jump": 3}
    whole = inpaint(
        of_pairs(), setting, x0, KNOWN, Noise(0, torch.arange(6)), **options,
        after_step=lambda: steps.append(1),
    )  # fmt: skip
    part = inpaint(of_pairs(), setting, x0[4:], KNOWN, Noise(0, torch.arange(4, 6)), **options)
    torch.testing.assert_close(part, whole[4:], rtol=0, atol=1e-6)
    assert len(steps) == 21
    other = inpaint(of_pairs(), setting, x0, KNOWN, Noise(0, torch.arange(6)), resample=3)
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("sampler", ["ddim", "unipc", "flow-map", "consistency", "euler-maruyama"])
def test_any_sampler_keeps_what_is_known(sampler):
    x0 = torch.rand(4, 2, 1, 1)
    setting = Setting(sampler=sampler, steps=3)
    got = inpaint(of_pairs("rectified"), setting, x0, KNOWN, Noise(0, torch.arange(4)), resample=2)
    assert torch.equal(got[:, 0], x0[:, 0]) and torch.isfinite(got).all()
    assert float((got[:, 1] - x0[:, 1]).abs().min()) > 1e-4


def test_nothing_known_is_sampling_and_bad_numbers_are_refused():
    nothing, rng = torch.zeros(2, 1, 1, dtype=torch.bool), Noise(0, torch.arange(3))
    x0 = torch.zeros(3, 2, 1, 1)
    setting = Setting(sampler="ddim", steps=5)
    got = inpaint(of_pairs(), setting, x0, nothing, rng, resample=1)
    torch.testing.assert_close(got, sample(of_pairs(), setting, rng))
    with pytest.raises(UserError, match="resample = 0"):
        inpaint(of_pairs(), setting, x0, KNOWN, rng, resample=0)
