"""MeanFlow: the identity holds on an exact flow between Gaussians, and training finds that flow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from core.condition import UNCONDITIONED, Condition
from core.config import parse
from core.counting import count_evals
from core.data import Batch
from core.diffusion.paths import expand
from core.diffusion.times import TimeConfig, make_pair_sampler
from core.errors import UserError
from core.model import Model
from core.noise import Noise
from core.sampling.sample import sample
from core.setting import Setting
from core.training.derivatives import jvp
from core.training.method import Progress, noise_of
from flows.flow_map import adaptive
from flows.meanflow import MeanFlow, MeanFlowConfig
from flows.rectified import RectifiedFlow, RectifiedFlowConfig
from teachers.exact import gaussian_flow
from tests.helpers.fit import fit, gaussian_batch, loss_of
from tests.helpers.flow_maps import (
    MEANS,
    PATH,
    SECOND,
    AffineInXOfTwoTimes,
    ExactMeanVelocity,
    exact_teacher,
    flow_map_model,
    map_error,
)
from tests.helpers.gaussian import SHAPE, STD
from tests.helpers.models import model_of


def method(network: nn.Module, teacher: Model | None = None, **options) -> MeanFlow:
    config = MeanFlowConfig(name="meanflow", **options)
    return MeanFlow(config, flow_map_model(network), None, teacher)


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


class AtEqualTimes(nn.Module):
    """A network of two times, asked for the velocity."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
        return self.network(x, t, torch.zeros_like(t))


def test_without_jumps_and_weight_it_is_rectified_flow():
    """With s = t always, and the squared error, loss and gradient are those of rectified flow (its
    mean over the image is here a sum) at the same times: the later of two draws."""
    torch.manual_seed(0)
    network = AffineInXOfTwoTimes()
    given = {"unequal": 0.0, "power": 0.0, "time": TimeConfig()}
    maps, batch = method(network, **given), gaussian_batch(64)
    t, s = maps.sample_times(batch.rng)
    assert torch.equal(t, s) and 0.6 < float(t.mean()) < 0.73  # of two uniform ones: 2 / 3
    flow = RectifiedFlow(
        RectifiedFlowConfig(name="rectified-flow"),
        model_of(AtEqualTimes(network), "rectified", "u", side=SHAPE[-1]),
        None,
    )
    flow.sample_time = lambda rng: t
    found = []
    for one, scale in ((maps, 1.0), (flow, float(math.prod(SHAPE)))):
        loss = scale * one.loss("student", batch, Progress(0, 0, 0.0)).per_sample
        found.append((loss.detach(), torch.autograd.grad(loss.mean(), network.parameters())))
    (loss, gradient), (known, theirs) = found
    torch.testing.assert_close(loss, known)
    torch.testing.assert_close(gradient, theirs)


def test_the_adaptive_weight_moves_the_velocity_off_its_mean():
    """Of two possible velocities 0 and 1, with probabilities 0.7 and 0.3, the squared error's
    minimum is their mean, and that of the weight with p = 1 near the likelier one: in few dimensions
    it is another model that is learned. In many, where all errors are of one size, it is the mean
    again."""

    def minimum(power: float, dimensions: int) -> float:
        spread = torch.randn(1000, dimensions, generator=torch.Generator().manual_seed(0)).double()
        v = 3 * spread / dimensions**0.5  # what does not help to tell them apart
        v[:, 0] = (torch.arange(1000) % 10 < 3).double()
        at = torch.zeros(dimensions).double().requires_grad_(True)
        for i in range(500):
            loss = adaptive((at - v).square().sum(1), power, 1e-3).mean()
            (slope,) = torch.autograd.grad(loss, at)
            with torch.no_grad():
                rate = 0.1 if power == 0 else 0.02 * dimensions * (1 - i / 500)
                at -= rate * slope
        return float(at[0])

    assert minimum(0.0, 1) == pytest.approx(0.3, abs=1e-3)
    assert abs(minimum(1.0, 1)) < 0.02
    assert minimum(1.0, 64) == pytest.approx(0.3, abs=0.03)


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


@pytest.mark.parametrize(
    ("options", "teacher"),
    [
        ({"power": 0.0}, None),
        ({"derivative": "difference", "power": 0.5}, None),
        pytest.param({"tangent": "own", "power": 0.0}, None, marks=pytest.mark.slow),
        pytest.param({"tangent": "own", "power": 0.5}, "vp-cosine", marks=pytest.mark.slow),
        pytest.param({"power": 0.5}, "rectified", marks=pytest.mark.slow),
    ],
)
def test_training_finds_the_exact_flow_map(options, teacher):
    """From the data's velocity, or from an exact teacher's on its own path or another."""
    torch.manual_seed(0)
    trained = method(
        AffineInXOfTwoTimes(),
        teacher and exact_teacher(teacher),
        unequal=0.5,
        time=TimeConfig(),
        **options,
    )
    before = map_error(trained.student, 1, 0)
    fit(trained, 2500)
    assert before > 0.5
    for t, s in ((1, 0), (1, 0.5), (0.5, 0)):
        error = map_error(trained.student, t, s)
        assert error < 0.06 * STD, (t, s, error, before)


@pytest.mark.parametrize("tangent", ["target", "own"])
@pytest.mark.parametrize("derivative", ["forward", "difference"])
def test_the_exact_flow_map_has_no_error_under_an_exact_teacher(tangent, derivative):
    options = {"unequal": 0.7, "power": 0.0, "tangent": tangent, "derivative": derivative}
    trained = method(ExactMeanVelocity(), exact_teacher(), **options)
    assert float(loss_of(trained).abs().max()) < 1e-4
    other = method(AffineInXOfTwoTimes(), exact_teacher(), **options)
    assert float(loss_of(other).min()) > 1e-4


def test_own_tangent_is_the_networks_velocity_at_one_time():
    """The target of improved MeanFlow, v - (t - s) dF/dt along F(x, t, t), by finite
    differences."""
    torch.manual_seed(0)
    trained = method(AffineInXOfTwoTimes().double(), unequal=1.0, power=0.0, tangent="own")
    model, batch = trained.student, gaussian_batch(32)
    t, s = trained.sample_times(batch.rng)
    eps = noise_of(batch)
    x, h = PATH.mix(batch.x0, eps, t).double(), 1e-6
    with torch.no_grad():
        own = model.output(x, t, s=t)
        F, after = model.output(x, t, s=s), model.output(x + h * own, t + h, s=s)
    error = F + expand(t - s, x) * (after - F) / h - (eps - batch.x0)
    torch.testing.assert_close(
        loss_of(trained, batch).double(), error.square().flatten(1).sum(1), rtol=1e-3, atol=1e-3
    )


class OfTheLabel(nn.Module):
    """F is a number for each label, the last one for the null label."""

    def __init__(self, *values: float):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x: Tensor, t: Tensor, r: Tensor, label: Tensor) -> Tensor:
        return expand(self.values[label], x) + 0 * x


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_guided_target_is_the_published_one(kappa):
    """At s = t the target is omega v + kappa u(label) + (1 - omega - kappa) u(null), within the
    given times and where the label was kept, and v elsewhere (eq. 19 and 21)."""
    network, shape = OfTheLabel(0.3, -0.7, 0.2), {"network": SECOND, "num_classes": 2}
    config = MeanFlowConfig(
        name="meanflow",
        unequal=0.0,
        power=0.0,
        label_dropout=0.3,
        guidance=2.5,
        guidance_mix=kappa,
        guidance_times=(0.2, 0.6),
    )
    trained = MeanFlow(
        config, model_of(network, "rectified", "mean-velocity", side=2, **shape), None
    )
    rng, label = Noise(0, torch.arange(64)), torch.arange(64) % 2
    batch = Batch(rng.normal(SHAPE, "data"), Condition(label), rng)
    loss = trained.loss("student", batch, Progress(0, 0, 0.0))
    v = rng.normal(SHAPE, "eps") - batch.x0
    kept = rng.uniform("label-dropout") >= 0.3
    seen = torch.where(kept, label, 2)
    own, null = (expand(u, v) for u in (network.values[seen], network.values[2].expand(64)))
    guided = 2.5 * v + kappa * own + (1 - 2.5 - kappa) * null
    inside = kept & (loss.t >= 0.2) & (loss.t <= 0.6)
    assert 5 < int(inside.sum()) < 40 and int((~kept).sum()) > 5
    target = torch.where(expand(inside.double(), v) > 0, guided, v)
    torch.testing.assert_close(loss.per_sample, (own - target).square().flatten(1).sum(1))


def test_the_teacher_is_guided_and_the_data_play_no_part():
    """With a teacher of constant velocities, one for each label."""
    shape = {"network": SECOND, "num_classes": 2}
    student = model_of(OfTheLabel(0.0, 0.0, 0.0), "rectified", "mean-velocity", side=2, **shape)
    teacher = model_of(OfTheLabel(1.0, 2.0, 0.5), "rectified", "mean-velocity", side=2, **shape)
    config = MeanFlowConfig(name="meanflow", unequal=0.0, power=0.0, guidance=3.0, teacher="there")
    trained = MeanFlow(config, student, None, teacher)
    rng, label = Noise(0, torch.arange(8)), torch.arange(8) % 2
    batch = Batch(rng.normal(SHAPE, "data"), Condition(label), rng)
    with count_evals(teacher.network) as counter:
        loss = trained.loss("student", batch, Progress(0, 0, 0.0)).per_sample
    velocity = torch.where(label == 0, 0.5 + 3 * 0.5, 0.5 + 3 * 1.5)
    torch.testing.assert_close(loss, 4 * velocity.square())
    assert counter.forwards == 16


def test_what_guidance_cannot_do_is_refused():
    values = {"name": "meanflow", "guidance": 2.0}
    with pytest.raises(UserError, match="label_dropout above 0"):
        parse(MeanFlowConfig, values, "test")
    with pytest.raises(UserError, match="a teacher guides itself"):
        parse(MeanFlowConfig, values | {"teacher": "x", "guidance_mix": 0.5}, "test")
    with pytest.raises(UserError, match="needs classes or captions"):
        method(AffineInXOfTwoTimes(), guidance=2.0, label_dropout=0.1)


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
