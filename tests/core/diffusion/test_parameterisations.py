"""Predictions against diffusers, finite differences and the published consistency
parameterisation."""

import itertools

import pytest
import torch
from diffusers import DDPMScheduler

from core.diffusion.parameterisations import (
    PREDICTIONS,
    Consistency,
    ConsistencyFunction,
    SingularTime,
    convert,
    from_denoised,
    to_denoised,
)
from core.diffusion.paths import PATHS, make_path
from tests.helpers.models import model_of

TIMES = torch.tensor([0.02, 0.3, 0.5, 0.9, 0.98], dtype=torch.float64)


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _scene(path, t):
    """x0, eps and their mixture, one sample for each time; as many pixels a side as samples, to
    catch wrong broadcasts."""
    x0, eps = _randn(len(t), 2, len(t), len(t), seed=1), _randn(len(t), 2, len(t), len(t), seed=2)
    return x0, eps, path.mix(x0, eps, t)


@pytest.mark.parametrize("name", PATHS)
def test_targets_mean_what_they_say(name):
    path, h = make_path(name), 1e-5
    x0, eps, _ = _scene(path, TIMES)
    assert (
        from_denoised("eps", x0, eps, TIMES, path) is eps
        and from_denoised("x0", x0, eps, TIMES, path) is x0
    )
    v = from_denoised("v", x0, eps, TIMES, path)
    for i, t in enumerate(TIMES):
        torch.testing.assert_close(
            v[i], float(path.alpha(t)) * eps[i] - float(path.sigma(t)) * x0[i]
        )
    velocity = (path.mix(x0, eps, TIMES + h) - path.mix(x0, eps, TIMES - h)) / (2 * h)
    torch.testing.assert_close(
        from_denoised("u", x0, eps, TIMES, path), velocity, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_true_prediction_gives_back_both_ingredients(name, kind):
    path = make_path(name)
    x0, eps, x = _scene(path, TIMES)
    got = to_denoised(kind, from_denoised(kind, x0, eps, TIMES, path), x, TIMES, path)
    torch.testing.assert_close(got.x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.eps, eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind, target", list(itertools.product(PREDICTIONS, PREDICTIONS)))
def test_round_trips(name, kind, target):
    """Any output, true or not, survives the way to another meaning and back, and means the same
    mixture."""
    path = make_path(name)
    F, x = _randn(5, 2, 5, 5, seed=3), _randn(5, 2, 5, 5, seed=4)
    there = convert(kind, target, F, x, TIMES, path)
    torch.testing.assert_close(
        convert(target, kind, there, x, TIMES, path), F, rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(
        path.mix(*to_denoised(kind, F, x, TIMES, path), TIMES), x, rtol=1e-9, atol=1e-9
    )
    assert (kind == target) == torch.equal(there, F)


@pytest.mark.parametrize(
    "name, schedule", [("vp-linear", "linear"), ("vp-cosine", "squaredcos_cap_v2")]
)
def test_v_is_diffusers_velocity(name, schedule):
    scheduler = DDPMScheduler(beta_schedule=schedule)
    k = torch.tensor([0, 5, 100, 500, 998])
    x0, eps = _randn(5, 3, 4, 4, seed=1).float(), _randn(5, 3, 4, 4, seed=2).float()
    ours = from_denoised("v", x0, eps, (k + 1) / 1000.0, make_path(name))
    torch.testing.assert_close(ours, scheduler.get_velocity(x0, eps, k), rtol=1e-4, atol=1e-5)
    mixed = make_path(name).mix(x0, eps, (k + 1) / 1000.0)
    torch.testing.assert_close(mixed, scheduler.add_noise(x0, eps, k), rtol=1e-4, atol=1e-5)


def test_u_of_the_straight_path_is_noise_minus_data():
    x0, eps, _ = _scene(make_path("rectified"), TIMES)
    torch.testing.assert_close(from_denoised("u", x0, eps, TIMES, make_path("rectified")), eps - x0)


def test_division_by_zero_raises():
    x = torch.ones(2, 1, 2, 2)
    noise, data = (
        torch.tensor([0.5, 1.0]),
        torch.tensor([0.0, 0.5]),
    )  # one bad time in a batch is enough
    for name in ("rectified", "trigonometric"):
        with pytest.raises(SingularTime):
            to_denoised("eps", x, x, noise, make_path(name))
        for kind in ("x0", "v", "u"):
            assert all(
                torch.isfinite(part).all()
                for part in to_denoised(kind, x, x, noise, make_path(name))
            )
    for name in PATHS:
        with pytest.raises(SingularTime):
            to_denoised("x0", x, x, data, make_path(name))
        for kind in ("eps", "v"):
            assert all(
                torch.isfinite(part).all()
                for part in to_denoised(kind, x, x, data, make_path(name))
            )
    for name in ("vp-linear", "vp-cosine"):  # sigma starts like sqrt(t): infinite speed
        with pytest.raises(SingularTime):
            to_denoised("u", x, x, data, make_path(name))
        with pytest.raises(SingularTime):
            from_denoised("u", x, x, data, make_path(name))


def test_unknown_prediction_raises():
    with pytest.raises(ValueError, match="velocity"):
        to_denoised(
            "velocity",
            torch.ones(1, 1),
            torch.ones(1, 1),
            torch.tensor([0.5]),
            make_path("rectified"),
        )


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t_min, sigma_data", [(0.0, 1.0), (0.0, 0.5), (0.002, 0.5), (0.01, 1.3)])
def test_consistency_boundary_is_the_published_one(name, t_min, sigma_data):
    """Song et al. 2023, app. C, in the variables of Karras et al.: y = x / alpha and s = sigma /
    alpha."""
    path, boundary = make_path(name), Consistency(t_min, sigma_data)
    t = torch.cat([torch.tensor([max(t_min, 1e-4)]).double(), TIMES[1:]])
    F, x = _randn(5, 2, 5, 5, seed=3), _randn(5, 2, 5, 5, seed=4)
    ours = boundary.x0(F, x, t, path)
    first = torch.tensor(t_min, dtype=torch.float64)
    s_min = float(path.sigma(first)) / float(path.alpha(first))
    for i in range(5):
        alpha, sigma = float(path.alpha(t[i])), float(path.sigma(t[i]))
        y, s = x[i] / alpha, sigma / alpha
        c_skip = sigma_data**2 / ((s - s_min) ** 2 + sigma_data**2)
        c_out = sigma_data * (s - s_min) / (sigma_data**2 + s**2) ** 0.5
        torch.testing.assert_close(ours[i], c_skip * y + c_out * -F[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t_min", [0.0, 0.002, 0.05])
def test_consistency_function_is_the_identity_at_its_boundary(name, t_min):
    """f = x in the variables of the paper, whatever the network says: exactly x where t_min = 0."""
    path, t = make_path(name), torch.tensor(t_min, dtype=torch.float64)
    F, x = _randn(5, 2, 5, 5, seed=3), _randn(5, 2, 5, 5, seed=4)
    got = Consistency(t_min, 0.5).x0(1e6 * F, x, t, path)
    torch.testing.assert_close(got, x / path.alpha(t), rtol=1e-12, atol=1e-12)
    if t_min == 0:
        assert torch.equal(got, x)


@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine", "trigonometric"])
def test_v_prediction_is_a_consistency_boundary(name):
    path, t = make_path(name), torch.cat([torch.zeros(1).double(), TIMES, torch.ones(1).double()])
    F, x = _randn(7, 2, 5, 5, seed=3), _randn(7, 2, 5, 5, seed=4)
    torch.testing.assert_close(
        Consistency(0.0, 1.0).x0(F, x, t, path),
        to_denoised("v", F, x, t, path).x0,
        rtol=1e-12,
        atol=1e-12,
    )


class _Constant(torch.nn.Module):
    """A network that answers the same everywhere."""

    def __init__(self, F):
        super().__init__()
        self.F = F

    def forward(self, x, t, r=None, label=None):
        assert t.shape == (len(x),)
        return self.F.expand_as(x)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_model_reads_its_network(name, kind):
    """x0, eps and u of a Model belong together: along the straight line they span, dx/dt is u."""
    path = make_path(name)
    model = model_of(_Constant(_randn(1, 2, 5, 5, seed=3)), path, kind)
    x, t, h = _randn(5, 2, 5, 5, seed=4), torch.tensor(0.4, dtype=torch.float64), 1e-5
    x0, eps = model.x0(x, t), model.eps(x, t)
    torch.testing.assert_close(path.mix(x0, eps, t), x)
    slope = (path.mix(x0, eps, t + h) - path.mix(x0, eps, t - h)) / (2 * h)
    torch.testing.assert_close(model.u(x, t), slope, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.map(x, t, t), x)
    torch.testing.assert_close(model.map(x, t, torch.tensor(0.0)), x0)


def test_model_with_a_boundary():
    path, t = make_path("vp-cosine"), torch.tensor(0.6, dtype=torch.float64)
    function = ConsistencyFunction(t_min=0.002, sigma_data=0.5)
    model = model_of(_Constant(_randn(1, 2, 5, 5, seed=3)), path, function)
    x = _randn(5, 2, 5, 5, seed=4)
    x0, eps = model.denoised(x, t)
    torch.testing.assert_close(path.mix(x0, eps, t), x)
    torch.testing.assert_close(model.x0(x, t), x0)
    assert not torch.allclose(x0, to_denoised("v", model.output(x, t), x, t, path).x0)
