"""Consistency training on data whose flow is known in closed form, and its parts against the
papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from core.condition import UNCONDITIONED
from core.data import Batch
from core.diffusion.parameterisations import ConsistencyFunction
from core.diffusion.paths import make_path
from core.errors import UserError
from core.model import Model
from core.networks.unet import UNetConfig
from core.noise import Noise
from core.training.method import Progress
from students.consistency_training import ConsistencyTraining, ConsistencyTrainingConfig
from students.teacher import consistency_function_of
from teachers.exact import gaussian_flow
from tests.helpers.fit import fit
from tests.helpers.gaussian import MEAN, SHAPE, STD, AffineInX
from tests.helpers.models import model_of

CT = {
    "gap": "grid",
    "growth": "root",
    "steps_start": 2,
    "steps_end": 150,
    "weight": "uniform",
    "distance": "squared",
    "time": {"name": "uniform"},
}
ICT = {"gap": "grid", "huber": 0.00054}


def method_of(network: nn.Module, path: str = "vp-cosine", **options) -> ConsistencyTraining:
    config = ConsistencyTrainingConfig(name="consistency-training", **options)
    model = model_of(network, path, ConsistencyFunction(output="v"), side=2)
    return ConsistencyTraining(config, model)


def batch_of(count: int, first: int = 0) -> Batch:
    rng = Noise(0, torch.arange(first, first + count))
    return Batch(MEAN + STD * rng.normal(SHAPE, "data").double(), UNCONDITIONED, rng)


def error_of(model: Model, start: float = 1.0) -> float:
    """RMS of the jump from t = start against the exact flow, in units of the data's spread."""
    t, zero = torch.tensor(start, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    c = model.path.at(t)
    noise = torch.randn(
        500, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    x = c.alpha * MEAN + (c.alpha**2 * STD**2 + c.sigma**2).sqrt() * noise
    mean = torch.full(SHAPE, MEAN, dtype=torch.float64)
    exact = gaussian_flow(model.path, x, t, zero, mean, STD)
    with torch.no_grad():
        return float((model.x0(x.float(), t) - exact).square().mean().sqrt()) / STD


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("vp-cosine", {"weight": "output", "distance": "squared", "time": {"name": "uniform"}}),
        pytest.param(
            "trigonometric",
            {**CT, "grid": "time", "steps_start": 4, "steps_end": 64},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_learned_map_approaches_the_exact_one(path, options):
    torch.manual_seed(0)
    method = method_of(AffineInX(), path, **options)
    untrained = error_of(method.student)
    fit(method, 800, lr=1e-2)
    assert untrained > 0.5
    assert (
        error_of(method.student) < 0.12
    )  # the last stage's gap is 1 / 2^8 to 1 / 2^5 of the level
    assert error_of(method.student, 0.5) < 0.03


@pytest.mark.parametrize("kind", ["v", "eps", "u"])
def test_boundary_holds_for_any_network(kind):
    model = model_of(AffineInX(), "rectified" if kind == "u" else "vp-cosine", kind, side=2)
    function = consistency_function_of(model.spec)
    model = model_of(model.network, model.path, function, side=2)
    x, zero = torch.randn(5, *SHAPE), torch.zeros(5, dtype=torch.float64)
    with torch.no_grad():
        assert (model.x0(x, zero) - x).abs().max() < 1e-6
        assert (model.x0(x, zero + 0.5) - x).abs().max() > 0.1


def test_a_prediction_without_a_boundary_is_refused():
    for kind in ("x0", "mean-velocity"):
        with pytest.raises(UserError, match=f"prediction {kind} has no boundary"):
            consistency_function_of(model_of(AffineInX(), "vp-cosine", kind).spec)


def test_the_ratio_of_noise_levels_is_the_published_one():
    """Geng et al. 2024, eq. 14 with k = 8, b = 1: r/t = 1 - n(t) / q^a, and 0 where that is
    below."""
    method = method_of(AffineInX(), q=2.0, stages=4)
    path = method.student.path
    sigma = torch.tensor([0.01, 0.3, 1.0, 5.0, 70.0], dtype=torch.float64)
    for fraction, a in ((0.0, 1), (0.3, 2), (0.6, 3), (1.0, 4)):
        s = method.earlier(path.time(-sigma.log()), fraction)
        found = (path.sigma(s) / path.alpha(s)).tolist()
        for one, level in zip(found, sigma.tolist(), strict=True):
            wanted = max(0.0, 1 - (1 + 8 / (1 + math.exp(level))) / 2**a) * level
            assert one == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_the_loss_tends_to_the_continuous_one():
    """||f(x_t, t) - f(x_r, r)|| / (t - r) tends to ||df/dt|| along the noise level t as r goes to
    t, to first order."""
    torch.manual_seed(0)
    network = AffineInX().double()
    batch, errors = batch_of(64), []
    path = make_path("vp-cosine")
    for q in (100.0, 200.0, 400.0):
        method = method_of(network, q=q, stages=1, huber=1e-9)
        found = method.loss("student", batch, Progress(0, 0, 0.0))
        model, eps = method.student, batch.rng.normal(SHAPE, "eps").double()
        level = torch.exp(-path.lam(found.t))

        def f(sigma, model=model, eps=eps):
            t = path.time(-sigma.log())
            alpha = path.alpha(t).view(-1, 1, 1, 1)
            return model.x0(alpha * (batch.x0 + sigma.view(-1, 1, 1, 1) * eps), t)

        _, slope = torch.func.jvp(f, (level,), (torch.ones_like(level),))
        known = slope.flatten(1).norm(dim=1)
        errors.append(float(((found.per_sample.detach() - known.detach()).abs() / known).mean()))
    assert errors[0] < 0.1
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.1)
    assert errors[2] / errors[1] == pytest.approx(0.5, abs=0.1)


def test_intervals_have_the_mass_of_the_log_normal():
    """Song and Dhariwal 2024, eq. 9, by erf."""
    method = method_of(AffineInX(), **ICT, steps_start=10, steps_end=10)
    rng = Noise(0, torch.arange(40_000))
    batch = Batch(torch.zeros(40_000, 1, 1, 1), UNCONDITIONED, rng)
    t, s = method.times(batch, 0.0)
    assert bool((s < t).all()) and float(t.max()) == 1.0 and float(s.min()) == 0.0
    path = method.student.path
    for time in t.unique()[1:-1]:
        one = t == time
        high = float(path.sigma(time) / path.alpha(time))
        low = float(path.sigma(s[one][0]) / path.alpha(s[one][0]))
        below = [0.5 * math.erf((math.log(x) + 1.1) / (2.0 * math.sqrt(2))) for x in (low, high)]
        assert float(one.double().mean()) == pytest.approx(below[1] - below[0], abs=0.01)


def test_numbers_of_intervals_grow_as_published():
    ct, ict = method_of(AffineInX(), **CT), method_of(AffineInX(), **ICT)
    # CT: N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 points, from 2 to 151
    assert [1 + ct.steps(f) for f in (0.0, 0.25, 1.0)] == [2, 76, 151]
    assert [ict.steps(f) for f in (0.0, 0.13, 0.5, 0.9, 1.0)] == [10, 20, 160, 1280, 1280]


@pytest.mark.parametrize("shared", [True, False])
def test_both_forwards_draw_one_dropout_mask(shared, monkeypatch):
    """Next to each other in time, they differ by their masks alone."""
    torch.manual_seed(0)
    spec = UNetConfig(widths=(8,), blocks=1, attention=(), dropout=0.5)
    network = spec.build(1, 4, 0).train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    config = ConsistencyTrainingConfig(
        name="consistency-training", q=1e6, stages=1, weight="uniform", time={"name": "uniform"}
    )
    function = ConsistencyFunction(output="v")
    model = model_of(network, "vp-cosine", function, side=4, network=spec)
    method = ConsistencyTraining(config, model)
    if not shared:
        from contextlib import nullcontext

        monkeypatch.setattr("students.teacher.same_dropout", lambda x: nullcontext())
    rng = Noise(0, torch.arange(16))
    batch = Batch(rng.normal((1, 4, 4), "data"), UNCONDITIONED, rng)
    found = method.loss("student", batch, Progress(0, 0, 0.0)).per_sample.mean()
    assert (float(found) < 0.01) == shared


def test_weights_are_finite_at_pure_noise():
    for path in ("trigonometric", "vp-cosine", "rectified"):
        method = method_of(AffineInX(), path, **ICT)
        grid = torch.tensor([1.0, 0.999, 0.5, 0.0], dtype=torch.float64)
        weight = method.weight(grid[:-1], grid[1:])
        assert bool(torch.isfinite(weight).all()) and bool((weight > 0).all())
