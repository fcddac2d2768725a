"""Encoding against the exact flow, and edits against closed forms and plain sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp

from core.condition import Condition
from core.counting import count_evals
from core.diffusion.parameterisations import ConsistencyFunction
from core.diffusion.paths import make_path
from core.errors import UserError
from core.noise import Noise
from core.sampling.editing import check_encodes, decode, encode, spherical, switch, vary
from core.sampling.sample import sample
from core.sampling.solvers import SAMPLERS
from core.setting import Setting
from teachers.exact import gaussian_flow
from tests.core.sampling.test_guidance_interval import LABEL, MEANS, PATH, STD, gaussians
from tests.core.sampling.test_inpaint import of_pairs
from tests.helpers.exact import GaussianDenoiser, fitted_order, mixture, mixture_flow
from tests.helpers.models import model_of

X0 = torch.tensor([[-1.3], [-0.4], [0.3], [0.8], [2.0]], dtype=torch.float64)
BOTH_WAYS = {name: sampler for name, sampler in SAMPLERS.items() if sampler.both_ways}


@pytest.mark.parametrize("name", ["vp-cosine", "rectified"])
@pytest.mark.parametrize("sampler", sorted(BOTH_WAYS.keys() - {"rk45"}))
def test_the_error_of_encoding_and_of_the_way_back_falls_by_the_order(sampler, name):
    """Against the exact flow from data to noise, integrated by scipy."""
    path = make_path(name)
    model, steps = mixture(path), [24, 48]
    exact = torch.tensor(mixture_flow(path, X0[:, 0].numpy(), 0.0, 1.0))
    there, back = [], []
    for n in steps:
        setting = Setting(sampler=sampler, steps=n)
        noise = encode(model, setting, X0)
        there.append(float((noise[:, 0] - exact).abs().max()))
        back.append(float((decode(model, setting, noise) - X0).abs().max()))
    order = BOTH_WAYS[sampler].order
    assert there[-1] < 0.1 and back[-1] < 0.1
    for errors in (there, back):
        assert errors[-1] < 1e-5 or fitted_order(steps, errors) > order - 0.4, errors


@pytest.mark.parametrize("name", ["vp-linear", "rectified"])
def test_the_adaptive_solver_goes_both_ways(name):
    """Its last step from data to noise may end beyond pure noise, where no path goes."""
    path = make_path(name)
    model = mixture(path)
    setting = Setting(sampler="rk45", steps=1, options={"tolerance": 1e-7})
    noise = encode(model, setting, X0)
    exact = torch.tensor(mixture_flow(path, X0[:, 0].numpy(), 0.0, 1.0))
    torch.testing.assert_close(noise[:, 0], exact, rtol=0, atol=1e-3)
    torch.testing.assert_close(decode(model, setting, noise), X0, rtol=0, atol=1e-3)


class Velocity(torch.nn.Module):
    """dx/dt of N(0.3, 0.5^2) on the rectified path; the length of the way is not read."""

    def __init__(self):
        super().__init__()
        self.asked: list[float] = []

    def forward(self, x, t, r=None):
        self.asked.append(float(t[0]))
        s = t.view(-1, 1, 1, 1)
        variance = (1 - s) ** 2 * 0.25 + s**2
        slope = (s - (1 - s) * 0.25) / variance
        return -0.3 + slope * (x - (1 - s) * 0.3)


def test_flow_maps_are_encoded_by_their_velocity():
    x0 = torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1, 1, 1)
    network = {"name": "mlp", "second_time": True}
    model = model_of(Velocity(), PATH, "mean-velocity", side=1, network=network)
    noise = encode(model, Setting(sampler="rk4", steps=16), x0)
    zero, one = (torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0))
    exact = gaussian_flow(PATH, x0, zero, one, torch.full_like(x0, 0.3), 0.5)
    torch.testing.assert_close(noise, exact, rtol=0, atol=1e-4)
    assert min(model.network.asked) > 0  # no network is asked at clean data


def test_discrete_times_alone_are_asked_for():
    model = model_of(Velocity(), PATH, "u", side=1, discrete_steps=100)
    encode(model, Setting(sampler="heun", steps=4), torch.zeros(2, 1, 1, 1, dtype=torch.float64))
    times = 100 * np.array(model.network.asked)
    np.testing.assert_allclose(times, times.round(), atol=1e-6)
    assert times.min() == 1


@pytest.mark.parametrize(
    "spec, setting, words",
    [
        ({}, {"sampler": "unipc"}, "unipc does not run .* take ddim, euler, heun"),
        ({}, {"sampler": "flow-map"}, "flow-map does not run"),
        ({}, {"sampler": "ddpm"}, "ddpm does not run"),
        ({}, {"options": {"eta": 0.5}}, "eta"),
        ({}, {"threshold": "static"}, "threshold"),
        ({"prediction": ConsistencyFunction()}, {}, "consistency model .* its teacher"),
        ({"prediction": ConsistencyFunction(output="v")}, {}, "consistency model"),
        ({"sampling": Setting(sampler="consistency", steps=1)}, {}, "consistency model"),
        ({"discrete_steps": 1}, {}, "generator of one step"),
    ],
)
def test_what_knows_no_way_back(spec, setting, words):
    model = model_of(Velocity(), PATH, **{"prediction": "v"} | spec)
    with pytest.raises(UserError, match=words):
        check_encodes(model, Setting(**{"sampler": "ddim", "steps": 1} | setting))


def test_noise_decides_the_image_of_deterministic_samplers_alone():
    model, noise = mixture(make_path("rectified")), torch.randn(3, 1)
    for setting in (
        Setting(sampler="consistency", steps=2),
        Setting(sampler="ddim", steps=2, options={"eta": 1.0}),
    ):
        with pytest.raises(UserError, match="draws noise of its own"):
            decode(model, setting, noise)
    one = decode(model, Setting(sampler="consistency", steps=1), noise)
    two = decode(model, Setting(sampler="ddim", steps=1), noise)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS.keys() - {"rk45"}))
def test_varying_from_pure_noise_is_sampling_and_from_clean_data_nothing(sampler):
    model, rng = gaussians(), Noise(3, torch.arange(3))
    setting, condition = Setting(sampler=sampler, steps=4), Condition(LABEL)
    x0 = torch.randn(3, 1, 1, 1)
    whole = vary(model, setting, x0, 1.0, rng, condition)
    assert torch.equal(whole, sample(model, setting, rng, condition))
    assert torch.equal(vary(model, setting, x0, 0.0, rng, condition), x0)


def test_pure_noise_is_the_samplers_own_where_a_path_keeps_a_trace_of_the_image():
    """On the cosine path alpha is 5e-5 at t = 1, and a large image would show through."""
    model, rng, x0 = of_pairs(), Noise(0, torch.arange(3)), torch.full((3, 2, 1, 1), 1e4)
    setting = Setting(sampler="ddim", steps=4)
    assert torch.equal(vary(model, setting, x0, 1.0, rng), sample(model, setting, rng))


def test_varying_follows_the_exact_flow_from_the_noised_image():
    model, rng, x0 = gaussians(), Noise(0, torch.arange(3)), torch.randn(3, 1, 1, 1).double()
    setting = Setting(sampler="rk4", steps=20)
    with count_evals(model.network) as counter:
        got = vary(model, setting, x0, 0.62, rng, Condition(LABEL))
    assert counter.forwards / 3 == 4 * 13  # from 0.62 to 0.6, and down by 0.05
    t, zero = (torch.tensor(v, dtype=torch.float64) for v in (0.62, 0.0))
    start = 0.38 * x0 + 0.62 * rng.normal((1, 1, 1), "prior").double()
    width = torch.full((3, 1), STD, dtype=torch.float64)
    exact = GaussianDenoiser(PATH, MEANS[LABEL][:, None], width).flow(start[:, :, 0, 0], t, zero)
    torch.testing.assert_close(got[:, :, 0, 0], exact, rtol=0, atol=1e-4)


def test_times_that_are_refused():
    x0, rng = torch.zeros(1, 1, 1, 1), Noise(0, torch.arange(1))
    setting = Setting(sampler="ddim", steps=4)
    coarse = model_of(Velocity(), PATH, "u", side=1, discrete_steps=4)
    began = Setting(sampler="consistency", steps=4, options={"start": 0.5})
    for model, chosen, t, words in (
        (coarse, setting, 1.2, "from 0, clean data"),
        (coarse, setting, 0.6, "multiples of 1 / 4"),
        (gaussians(), began, 0.4, "option start"),
    ):
        with pytest.raises(UserError, match=words):
            vary(model, chosen, x0, t, rng)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "unipc", "consistency"])
def test_a_switch_at_either_end_is_no_switch(sampler):
    model, rng = gaussians(), Noise(0, torch.arange(3))
    setting, one, two = Setting(sampler=sampler, steps=4), Condition(LABEL), Condition(1 - LABEL)
    for at, told in ((1.0, two), (0.0, one)):
        got = switch(model, setting, rng, one, two, at)
        assert torch.equal(got, sample(model, setting, rng, told))
    middle = switch(model, setting, rng, one, two, 0.4)
    assert not torch.equal(middle, sample(model, setting, rng, one))


def test_a_switch_follows_one_flow_and_then_the_other():
    model, rng = gaussians(), Noise(0, torch.arange(3))
    setting = Setting(sampler="rk4", steps=32)
    got = switch(model, setting, rng, Condition(LABEL), Condition(1 - LABEL), 0.55)
    x = rng.normal((1, 1, 1), "prior").double()[:, :, 0, 0]
    times = torch.tensor([1.0, 0.55, 0.0], dtype=torch.float64)
    for label, t, s in zip((LABEL, 1 - LABEL), times[:-1], times[1:], strict=True):
        width = torch.full((3, 1), STD, dtype=torch.float64)
        x = GaussianDenoiser(PATH, MEANS[label][:, None], width).flow(x, t, s)
    torch.testing.assert_close(got[:, :, 0, 0].double(), x, rtol=0, atol=1e-4)


def test_the_arc_between_two_noises():
    a, b = torch.randn(2, 3, 2, 5, 5, dtype=torch.float64)
    share = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64)
    arc = spherical(a, b, share)
    assert torch.equal(arc[0], a) and torch.equal(arc[-1], b) and arc.shape == (4, 3, 2, 5, 5)
    for x, y, got in zip(a, b, arc.transpose(0, 1), strict=True):
        u, v = (z / z.norm() for z in (x.flatten(), y.flatten()))
        expected = geometric_slerp(u.numpy(), v.numpy(), share.numpy())
        unit = spherical(u[None], v[None], share)[:, 0]
        np.testing.assert_allclose(unit.numpy(), expected, atol=1e-12)
        assert 0.8 < float(got[2].norm() / x.norm()) < 1.2
    torch.testing.assert_close(spherical(a, a, share), a.expand(4, *a.shape))
