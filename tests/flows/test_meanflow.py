"""MeanFlow: the identity holds on an exact flow between Gaussians, and training finds that flow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from core.condition import UNCONDITIONED
from core.data import Batch
from core.diffusion.paths import expand, make_path
from core.diffusion.times import TimeConfig, make_pair_sampler
from core.errors import UserError
from core.noise import Noise
from core.sampling.sample import sample
from core.setting import Setting
from core.training.derivatives import jvp
from core.training.method import Progress
from flows.meanflow import MeanFlow, MeanFlowConfig
from teachers.exact import gaussian_flow
from tests.helpers.fit import fit
from tests.helpers.gaussian import MEAN, SHAPE, STD
from tests.helpers.models import model_of

PATH = make_path("rectified")
MEANS = torch.full(SHAPE, MEAN, dtype=torch.float64)


class ExactMeanVelocity(nn.Module):
    """(x - X_s(x)) / (t - s) for the exact flow map X_s of Gaussian data; at s = t its limit, the
    velocity."""

    def __init__(self):
        super().__init__()
        self.none = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        s = t - r
        variance_t = (1 - t).square() * STD**2 + t.square()
        slope = (t - (1 - t) * STD**2) / variance_t
        velocity = -MEAN + expand(slope, x) * (x - expand(1 - t, x) * MEAN)
        width = (((1 - s).square() * STD**2 + s.square()) / variance_t).sqrt()
        there = expand(1 - s, x) * MEAN + expand(width, x) * (x - expand(1 - t, x) * MEAN)
        safe = torch.where(r > 0, r, torch.ones_like(r))
        return torch.where(expand(r, x) > 0, (x - there) / expand(safe, x), velocity)


def method(network: nn.Module, **options) -> MeanFlow:
    model = model_of(network, "rectified", "mean-velocity", side=2, network=SECOND)
    return MeanFlow(MeanFlowConfig(name="meanflow", **options), model, None)


SECOND = {"name": "unet", "widths": (4,), "second_time": True}


@pytest.mark.parametrize("backend", ["forward", "difference"])
def test_identity_holds_on_the_exact_flow(backend):
    """u(x, t, s) = v - (t - s) du/dt along the flow (eq. 6), v the marginal velocity at (x, t)."""
    model = method(ExactMeanVelocity()).student
    x = torch.randn(64, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.2, 1, 64, dtype=torch.float64)
    s = t * torch.linspace(0, 0.9, 64, dtype=torch.float64)
    with torch.no_grad():
        v, u = model.u(x, t), model.output(x, t, s=s)
    _, slope = jvp(model, x, t, s, v, backend=backend)
    rough = 1e-10 if backend == "forward" else 1e-3
    torch.testing.assert_close(v - expand(t - s, x) * slope, u, rtol=rough, atol=rough)


def test_the_map_of_the_exact_mean_velocity_is_the_flow_map():
    model = method(ExactMeanVelocity()).student
    x = torch.randn(64, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, s = torch.linspace(0.2, 1, 64).double(), torch.linspace(0, 0.9, 64).double() * 0.2
    with torch.no_grad():
        got = model.map(x, t, s)
    torch.testing.assert_close(got, gaussian_flow(PATH, x, t, s, MEANS, STD), rtol=1e-9, atol=1e-9)
    rng = Noise(0, torch.arange(64))
    noise = rng.normal(SHAPE, "prior")
    end = gaussian_flow(PATH, noise.double(), torch.ones(64), torch.zeros(64), MEANS, STD)
    for steps in (1, 2, 5):  # any number of steps is exact
        with torch.no_grad():
            got = sample(model, Setting(sampler="flow-map", steps=steps), rng)
        torch.testing.assert_close(got.double(), end, rtol=1e-5, atol=1e-5)


class AffineInXOfTwoTimes(nn.Module):
    """F = a(t, r) x + b(t, r), with a and b from a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        k = 0.5 * math.pi * torch.arange(1, 3, dtype=t.dtype)
        waves = [f(k * time[:, None]) for time in (t, r) for f in (torch.sin, torch.cos)]
        a, b = (
            self.net(torch.cat([t[:, None], r[:, None], *waves], 1)).view(-1, 2, 1, 1, 1).unbind(1)
        )
        return a * x + b


@pytest.mark.parametrize(("derivative", "power"), [("forward", 0.0), ("difference", 0.5)])
def test_training_finds_the_exact_flow_map(derivative, power):
    torch.manual_seed(0)
    uniform = TimeConfig()
    trained = method(
        AffineInXOfTwoTimes(), derivative=derivative, power=power, unequal=0.5, time=uniform
    )
    x = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(1))
    one, half, zero = (torch.full((500,), v, dtype=torch.float64) for v in (1.0, 0.5, 0.0))

    def error(t: Tensor, s: Tensor) -> float:
        start = gaussian_flow(PATH, x.double(), one, t, MEANS, STD)
        exact = gaussian_flow(PATH, x.double(), one, s, MEANS, STD)
        with torch.no_grad():
            return float((trained.student.map(start.float(), t, s) - exact).square().mean().sqrt())

    before = error(one, zero)
    fit(trained, 2500)
    assert before > 0.5
    for t, s in ((one, zero), (one, half), (half, zero)):
        assert error(t, s) < 0.06 * STD, (error(t, s), before)


def test_share_of_unequal_times_and_their_order():
    config = TimeConfig(name="logit-normal", mean=-0.4)
    t, s = make_pair_sampler(config, 0.25)(Noise(0, torch.arange(20_000)))
    assert bool((s <= t).all()) and abs(float((s < t).float().mean()) - 0.25) < 0.01
    larger = torch.sigmoid(
        -0.4 + torch.tensor(1 / math.sqrt(math.pi))
    )  # of the larger of two: rough
    assert abs(float(t.median()) - float(larger)) < 0.03


def test_adaptive_weight_is_the_published_one():
    """Loss e / (e + c)^p with the weight's gradient stopped, e the squared error summed."""
    torch.manual_seed(0)
    rng = Noise(0, torch.arange(8))
    batch = Batch(rng.normal(SHAPE, "data"), UNCONDITIONED, rng)
    losses, slopes = {}, {}
    for power in (0.0, 0.75):
        trained = method(AffineInXOfTwoTimes(), power=power, offset=0.5)
        with_seed = torch.Generator().manual_seed(3)
        for p in trained.student.parameters():
            p.data = torch.randn(p.shape, generator=with_seed)
        loss = trained.loss("student", batch, Progress(0, 0, 0.0)).per_sample
        losses[power] = loss.detach()
        slopes[power] = [
            torch.autograd.grad(one, list(trained.student.parameters()), retain_graph=True)[-1]
            for one in loss
        ]
    weight = (losses[0.0] + 0.5) ** -0.75
    torch.testing.assert_close(losses[0.75], losses[0.0] * weight)
    for k in range(8):
        torch.testing.assert_close(slopes[0.75][k], slopes[0.0][k] * weight[k])


def test_other_parameterisations_are_refused():
    model = model_of(AffineInXOfTwoTimes(), "rectified", "u", side=2, network=SECOND)
    with pytest.raises(UserError, match="model.prediction=mean-velocity"):
        MeanFlow(MeanFlowConfig(name="meanflow"), model, None)
