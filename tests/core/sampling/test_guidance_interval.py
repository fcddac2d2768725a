"""Guidance at some times alone: against composed closed forms, plain guidance, and counted
evaluations."""

from __future__ import annotations

import pytest
import torch

from core.condition import Condition
from core.counting import count_evals
from core.diffusion.grids import make_grid
from core.diffusion.paths import make_path
from core.errors import UserError
from core.noise import Noise
from core.sampling.denoisers import denoiser_for
from core.sampling.sample import expected_nfe, sample
from core.sampling.solvers import SAMPLERS
from core.setting import Setting
from eval.settings import normal
from tests.core.sampling.test_denoisers import ClassGaussians
from tests.helpers.exact import GaussianDenoiser
from tests.helpers.models import model_of

PATH, STD = make_path("rectified"), 0.4
MEANS = torch.tensor([-0.5, 1.0, 0.1]).double()
LABEL = torch.tensor([0, 1, 1])


class OfNumbers(ClassGaussians):
    """Of samples [B, 1] or [B, 1, 1, 1]."""

    def __init__(self):
        super().__init__(PATH, MEANS, torch.full((3,), STD, dtype=torch.float64), "v")
        self.none = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, t, r=None, label=None):
        return super().forward(x.flatten(1), t, r, label).view_as(x)


def gaussians():
    """Two classes of equal widths, and a null; samples are single numbers."""
    return model_of(OfNumbers(), PATH, num_classes=2, side=1)


def test_it_acts_in_the_interval_alone():
    """The flow of the class outside of the interval, and of the guided Gaussian within it."""
    x, scale = torch.tensor([[-1.0], [0.0], [1.2]], dtype=torch.float64), 3.0
    interval = (0.25, 0.75)
    denoiser = denoiser_for(gaussians(), Condition(LABEL), scale, guidance_interval=interval)
    with torch.no_grad():
        got = SAMPLERS["euler"].run(denoiser, x, make_grid("time", PATH, 500))
    plain, guided = (
        GaussianDenoiser(PATH, mean[:, None], torch.full((3, 1), STD, dtype=torch.float64))
        for mean in (MEANS[LABEL], 0.1 + scale * (MEANS[LABEL] - 0.1))
    )
    expected, times = x, torch.tensor([1.0, 0.75, 0.25, 0.0], dtype=torch.float64)
    for flow, t, s in zip((plain, guided, plain), times[:-1], times[1:], strict=True):
        expected = flow.flow(expected, t, s)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-2)
    for other in (plain, guided):
        assert float((other.flow(x, times[0], times[-1]) - expected).abs().max()) > 0.1


@pytest.mark.parametrize("sampler", sorted(SAMPLERS.keys() - {"rk45"}))
def test_the_whole_interval_is_plain_guidance_to_the_bit(sampler):
    model, rng = gaussians(), Noise(0, torch.arange(3))
    setting = Setting(sampler=sampler, steps=4, guidance_scale=2.0)
    within = setting.model_copy(update={"guidance_interval": (0.0, 1.0)})
    one, two = (sample(model, s, rng, Condition(LABEL)) for s in (setting, within))
    assert torch.equal(one, two) and normal(within) == normal(setting)
    half = setting.model_copy(update={"guidance_interval": (0.3, 0.6)})
    assert not torch.equal(sample(model, half, rng, Condition(LABEL)), one)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "rk4", "unipc", "flow-map"])
def test_outside_of_it_a_step_costs_one_evaluation(sampler):
    model, rng = gaussians(), Noise(0, torch.arange(3))
    setting = Setting(sampler=sampler, steps=10, guidance_scale=2.0, guidance_interval=(0.35, 0.75))
    with count_evals(model.network) as counter:
        sample(model, setting, rng, Condition(LABEL))
    assert counter.forwards / 3 == expected_nfe(model, setting)
    if sampler == "ddim":  # at 0.7, 0.6, 0.5 and 0.4
        assert expected_nfe(model, setting) == 14
    whole, off = (
        setting.model_copy(update={"guidance_interval": i}) for i in ((0, 1), (0.34, 0.34))
    )
    assert expected_nfe(model, whole) == 2 * expected_nfe(model, off)


def test_identity_and_words():
    plain = Setting(sampler="ddim", steps=2, guidance_scale=2.0)
    within = plain.model_copy(update={"guidance_interval": (0.2, 0.8)})
    assert (
        within.key()[:-1] == plain.key()
        and within.label() == "ddim, guidance 2 in [0.2, 0.8], 2 steps"
    )
    assert "guidance_interval" not in plain.model_dump()  # specs and hashes from before it stay
    off = within.model_copy(update={"guidance_scale": 1.0})
    assert normal(off) == normal(plain.model_copy(update={"guidance_scale": 1.0}))
    assert off.label() == "ddim, 2 steps"


@pytest.mark.parametrize("low, fits", [(0.5, True), (2.0, False)])
def test_models_that_are_told_the_weight(low, fits):
    """One evaluation everywhere; outside of the interval they are told 1, if they learned that."""
    network = {"name": "unet", "widths": (4,), "blocks": 1, "attention": (), "guidance": (low, 4.0)}
    told = []

    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.none = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t, r=None, label=None, guidance=None):
            told.append(1.0 if guidance is None else float(guidance[0]))
            return x

    model = model_of(Told(), PATH, num_classes=2, network=network)
    setting = Setting(sampler="ddim", steps=4, guidance_scale=3.0, guidance_interval=(0.4, 0.8))
    if not fits:
        with pytest.raises(UserError, match="guidance_interval.* from 2 to 4"):
            expected_nfe(model, setting)
        return
    assert expected_nfe(model, setting) == 4
    sample(model, setting, Noise(0, torch.arange(3)), Condition(LABEL))
    assert told == [1.0, 3.0, 3.0, 1.0]
