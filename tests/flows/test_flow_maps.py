"""Flow maps of other kinds than MeanFlow: what each loss says of the exact map between Gaussians,
against finite differences and loops, and whether training finds that map."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from core.condition import Condition
from core.config import parse
from core.counting import count_evals
from core.data import Batch
from core.diffusion.paths import expand
from core.diffusion.times import TimeConfig
from core.errors import UserError
from core.noise import Noise
from core.training.method import Method, Progress, noise_of
from flows.align import Align, AlignConfig
from flows.moments import Moments, MomentsConfig, discrepancy
from flows.self_distilled import SelfDistilled, SelfDistilledConfig
from flows.shortcut import Shortcut, ShortcutConfig
from flows.soflow import SoFlow, SoFlowConfig
from teachers.exact import gaussian_flow
from tests.helpers.fit import fit, gaussian_batch, loss_of
from tests.helpers.flow_maps import (
    MEANS,
    PATH,
    SECOND,
    AffineInXOfTwoTimes,
    ExactMeanVelocity,
    exact_teacher,
    exact_velocity,
    flow_map_model,
    map_error,
)
from tests.helpers.gaussian import SHAPE, STD
from tests.helpers.models import model_of

UNIFORM = TimeConfig()
PLAIN = {"power": 0.0}
METHODS = {
    "shortcut": (Shortcut, ShortcutConfig, {"bootstrap": 0.5}),
    "lagrangian": (SelfDistilled, SelfDistilledConfig, {"loss": "lagrangian", "diagonal": 0.5}),
    "eulerian": (SelfDistilled, SelfDistilledConfig, {"loss": "eulerian", "diagonal": 0.5}),
    "half-way": (SelfDistilled, SelfDistilledConfig, {"loss": "progressive", "diagonal": 0.5}),
    "progressive": (
        SelfDistilled,
        SelfDistilledConfig,
        {"loss": "progressive", "middle": "uniform", "diagonal": 0.5},
    ),
    "align": (Align, AlignConfig, {"most": 1.0}),
    "soflow": (SoFlow, SoFlowConfig, {"flow": 0.5, "ratio_end": 1e-3}),
}


def make(name: str, network: nn.Module, taught: bool = True, **more) -> Method:
    cls, config, options = METHODS[name]
    teacher = exact_teacher() if taught else None
    values = {"name": name, **options, **more} | ({"teacher": "there"} if taught else {})
    return cls(config(**values), flow_map_model(network), None, teacher)


def double_batch(size: int = 64) -> Batch:
    batch = gaussian_batch(size)
    return batch._replace(x0=batch.x0.double(), eps=noise_of(batch).double())


@pytest.mark.parametrize("name", METHODS)
def test_the_exact_map_has_no_error_under_an_exact_teacher(name):
    """Semigroup, Lagrangian and Eulerian equation alike hold for it, and not for another map."""
    # The shortest half step of a shortcut is that of the velocity: an error of its length.
    plain = {"shortcut": {"segments": 2**14}, "align": {}}.get(name, PLAIN)
    exact = loss_of(make(name, ExactMeanVelocity(), **plain), double_batch(), 1.0)
    assert float(exact.max()) < (1e-4 if name == "align" else 1e-5), exact.max()
    torch.manual_seed(0)
    other = loss_of(make(name, AffineInXOfTwoTimes().double(), **plain), double_batch(), 1.0)
    assert float(other.mean()) > 0.05


@pytest.mark.parametrize("taught", [False, True])
def test_lagrangian_derivative_is_autograds(taught):
    """(dX_s/ds - u(X_s, s))^2 off the diagonal, its gradient too, with u held fixed."""
    torch.manual_seed(0)
    method = make("lagrangian", AffineInXOfTwoTimes().double(), taught, diagonal=0.4, power=0.0)
    model, batch = method.student, double_batch(32)
    t, s = method.sample_times(batch.rng)
    x = PATH.mix(batch.x0, batch.eps, t)
    s = s.requires_grad_()
    X = x - expand(t - s, x) * model.output(x, t, s=s)
    rate = torch.stack(
        [
            torch.autograd.grad(X[:, 0, i, j].sum(), s, create_graph=True)[0]
            for i in (0, 1)
            for j in (0, 1)
        ],
        1,
    ).view_as(x)
    with torch.no_grad():
        there = exact_velocity(X, s) if taught else model.output(X, s, s=s)
        on = exact_velocity(x, t) if taught else batch.eps - batch.x0
    off = expand((s < t).double(), x) > 0
    error = torch.where(off, rate - there, model.output(x, t, s=t) - on)
    known = error.square().flatten(1).sum(1)
    got = method.loss("student", batch, Progress(0, 0, 0.0)).per_sample
    assert 5 < int((s < t).sum()) < 28
    torch.testing.assert_close(got.double(), known, rtol=1e-3, atol=1e-4)
    ours, theirs = (
        torch.autograd.grad(loss.mean(), list(model.parameters())) for loss in (got, known)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_eulerian_target_is_that_of_finite_differences():
    torch.manual_seed(0)
    method = make("eulerian", AffineInXOfTwoTimes().double(), False)
    x = torch.randn(16, *SHAPE, dtype=torch.float64)
    t, h = torch.linspace(0.3, 0.99, 16).double(), 1e-6
    s = t * torch.linspace(0, 0.9, 16).double()
    with torch.no_grad():
        u = method.student.output(x, t, s=t)
        F, after = (method.student.output(x + k * h * u, t + k * h, s=s) for k in (0, 1))
    got = method.eulerian(x, t, s, Condition(), t)
    torch.testing.assert_close(got, u - expand(t - s, x) * (after - F) / h, rtol=1e-4, atol=1e-4)


def test_price_of_each_loss():
    """Evaluations per image: 3 on the diagonal, and off it 7, 6 and 5."""
    for name, off in (("lagrangian", 7), ("eulerian", 6), ("half-way", 5)):
        method = make(name, AffineInXOfTwoTimes(), False, diagonal=0.5)
        t, s = method.sample_times(gaussian_batch(64).rng)
        with count_evals(method.student.network) as counter:
            method.loss("student", gaussian_batch(64), Progress(0, 0, 0.0))
        jumps = int((s < t).sum())
        assert counter.evals == 3 * (64 - jumps) + off * jumps


def test_times_of_shortcuts():
    method = make("shortcut", AffineInXOfTwoTimes(), segments=8, bootstrap=0.25)
    rng = Noise(0, torch.arange(20_000))
    t, s, longer = method.times(SimpleNamespace(rng=rng))
    step = (t - s)[longer]
    assert set(step.tolist()) == {1.0, 0.5, 0.25} and set((t - s)[~longer].tolist()) == {0.0}
    assert abs(float(longer.float().mean()) - 0.25) < 0.01
    assert torch.equal(t[longer] / step, (t[longer] / step).round()) and float(s.min()) == 0
    assert set(t[~longer].tolist()) == {k / 8 for k in range(1, 9)}
    for one in (1.0, 0.5, 0.25):
        assert abs(float((step == one).float().mean()) - 1 / 3) < 0.03


class Times(nn.Module):
    """F = 1 + 10 t + 100 r, to see what the network is told."""

    def __init__(self):
        super().__init__()
        self.none = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return expand(1 + 10 * t + 100 * r, x) + self.none + 0 * x


def test_two_half_steps():
    """The shortest half step is asked for as the velocity."""
    method = make("shortcut", Times(), segments=8, clip=0.0)
    x, t = torch.zeros(2, *SHAPE).double(), torch.tensor([1.0, 0.5]).double()
    got = method.two_steps(x, t, torch.tensor([0.0, 0.25]).double(), Condition())[:, 0, 0, 0]
    known = [(1 + 10 + 50 + 1 + 5 + 50) / 2, (1 + 5 + 1 + 10 * 0.375) / 2]
    torch.testing.assert_close(got, torch.tensor(known).double())
    clipped = make("shortcut", Times(), segments=8).two_steps(x, t, t / 2, Condition())
    assert float(clipped.max()) == 4


def test_align_gradient_and_warm_up():
    """dL/dF = -2 g / (rms(g) + c) / D per image, with r rising from 0 to its most."""
    method = make("align", AffineInXOfTwoTimes().double(), convert=0.1, warmup=0.4, most=0.9)
    weights = [method.weight(f) for f in (0.0, 0.1, 0.3, 0.5, 1.0)]
    assert weights == pytest.approx([0, 0, 0.45, 0.9, 0.9])
    model, batch = method.student, double_batch(16)
    t, s = method.times(batch.rng)
    assert bool(((0 < s) & (s < t) & (t < 1)).all())
    x, h = PATH.mix(batch.x0, batch.eps, t), 1e-6
    v = exact_velocity(x, t)
    with torch.no_grad():
        F, after = (model.output(x + k * h * v, t + k * h, s=s) for k in (0, 1))
    g = v - 0.45 * expand(t - s, x) * (after - F) / h - F
    g = g / (g.square().mean((1, 2, 3), keepdim=True).sqrt() + 0.1)
    bias = list(model.parameters())[-1]
    loss = method.loss("student", batch, Progress(0, 0, 0.3)).per_sample.mean()
    got = torch.autograd.grad(loss, bias)[0][1]  # of b in F = a x + b
    torch.testing.assert_close(got, -2 * g.mean(), rtol=1e-3, atol=1e-4)


def test_soflow_is_flow_matching_first_and_meanflow_at_last():
    """At l = s the error is v - F; as l goes to t it tends to MeanFlow's, v - (t - s) dF/dt - F."""
    torch.manual_seed(0)
    options = {"flow": 0.0, "power": 0.0, "time": UNIFORM, "end": UNIFORM}
    method = make("soflow", AffineInXOfTwoTimes().double(), False, ratio_end=1e-4, **options)
    model, batch, h = method.student, double_batch(32), 1e-6
    t, middle, s = method.times(batch.rng, 0.0)
    torch.testing.assert_close(middle, s)
    x, v = PATH.mix(batch.x0, batch.eps, t), batch.eps - batch.x0
    with torch.no_grad():
        F, after = (model.output(x + k * h * v, t + k * h, s=s) for k in (0, 1))
    first = (v - F).square().flatten(1).mean(1)
    last = (v - F - expand(t - s, x) * (after - F) / h).square().flatten(1).mean(1)
    torch.testing.assert_close(loss_of(method, batch, 0.0).double(), first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss_of(method, batch, 1.0).double(), last, rtol=1e-2, atol=1e-3)
    with count_evals(model.network) as counter:
        method.loss("student", batch, Progress(0, 0, 0.5))
    assert counter.evals == 4 * 32


@pytest.mark.parametrize("labelled", [False, True])
def test_discrepancy_is_that_of_loops(labelled):
    f, g = torch.randn(2, 3, 4, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    scale, label = torch.tensor([0.2, 0.5, 1.0]).double(), torch.arange(12).view(3, 4) % 2

    def k(i: int, a: Tensor, b: Tensor) -> float:
        return math.exp(-float((a - b).norm()) / (float(scale[i]) * 4))

    for i in range(3):
        total = 0.0
        for p in range(4):
            for q in range(4):
                if not labelled or label[i, p] == label[i, q]:
                    total += k(i, f[i, p], f[i, q]) + k(i, g[i, p], g[i, q])
                    total -= 2 * k(i, f[i, p], g[i, q])
        got = discrepancy(f, g, scale, label if labelled else None)[i].sum() / 4
        assert float(got) == pytest.approx(total / 16, abs=2e-8)  # a distance is at least 1e-8
    assert float(discrepancy(f, f, scale, None).abs().max()) < 1e-9


def moments(network: nn.Module, num_classes: int = 0, **options) -> Moments:
    values = {"name": "moment-matching", "among": 16, **options}
    model = model_of(
        network, "rectified", "mean-velocity", side=2, network=SECOND, num_classes=num_classes
    )
    return Moments(MomentsConfig(**values), model, None)


def test_times_and_weight_of_moments():
    method, rng = moments(AffineInXOfTwoTimes()), Noise(0, torch.arange(5000))
    t, r, s = method.times(rng)
    assert bool(((s <= r) & (r < t) & (t <= 0.994)).all()) and float(s.min()) >= 1e-3
    eta = t / (1 - t)
    step = (0.994 / 0.006 - 1e-3 / 0.999) / 2**12
    free = eta - step > s / (1 - s)
    torch.testing.assert_close((eta - r / (1 - r))[free], torch.full_like(eta[free], step))
    assert torch.equal(r[~free], s[~free])
    # lambda = 2 log((1 - t) / t), so that -dlambda/dt = 2 / (t (1 - t))
    known = 0.5 / (1 + ((1 - t) / t).square() * math.exp(-4)) * 2 / (t * (1 - t)) * (1 - t)
    torch.testing.assert_close(method.weight(t), known / ((1 - t).square() + t.square()))


class OfTwoTimesAndLabels(AffineInXOfTwoTimes):
    def forward(self, x: Tensor, t: Tensor, r: Tensor, label: Tensor | None = None) -> Tensor:
        return super().forward(x, t, r)


def test_groups_share_times_and_if_they_can_a_label():
    method = moments(OfTwoTimesAndLabels().double(), 2, particles=4)
    label = torch.randint(2, (32,), generator=torch.Generator().manual_seed(0))
    batch = double_batch(32)._replace(condition=Condition(label))
    order = method.order(batch)
    assert order[:16].max() < 16  # groups stay among 16 neighbours
    groups = label[order].view(-1, 4)
    assert int((groups != groups[:, :1]).any(1).sum()) <= 2
    loss = method.loss("student", batch, Progress(0, 0, 0.0))
    times = loss.t[order].view(-1, 4)
    assert bool((times == times[:, :1]).all()) and len(times[:, 0].unique()) == 8
    # The sum over a group is that of the discrepancy of its jumps, computed from the definition.
    t, r, s = (v[order].view(-1, 4)[:, :1].expand(-1, 4).flatten() for v in method.times(batch.rng))
    x0, eps = batch.x0[order], batch.eps[order]
    with torch.no_grad():
        f = method.student.map(PATH.mix(x0, eps, t), t, s, Condition(label[order]))
        g = method.student.map(PATH.mix(x0, eps, r), r, s, Condition(label[order]))
    f, g = f.unflatten(0, (-1, 4)), g.unflatten(0, (-1, 4))
    known = discrepancy(f, g, (t - s).view(-1, 4)[:, 0], groups).flatten() * method.weight(t)
    got = loss.per_sample[order].detach().double()
    torch.testing.assert_close(got, known, rtol=1e-2, atol=1e-4)


def test_moments_refuse_what_breaks_groups():
    with pytest.raises(UserError, match="method.among=6 is no multiple of method.particles=4"):
        moments(AffineInXOfTwoTimes(), among=6)
    with pytest.raises(UserError, match="10 images at a time, no multiple of method.among=16"):
        loss_of(moments(AffineInXOfTwoTimes()), gaussian_batch(10))
    with pytest.raises(UserError, match=r"method\.teacher"):
        moments(AffineInXOfTwoTimes(), teacher="x")


def test_other_mistakes():
    with pytest.raises(UserError, match="96 is no power of 2"):
        parse(ShortcutConfig, {"name": "shortcut", "segments": 96}, "test")
    with pytest.raises(UserError, match="name a teacher"):
        parse(SoFlowConfig, {"name": "soflow", "guidance": 2.0}, "test")
    shape = SECOND | {"dropout": 0.1}
    model = model_of(AffineInXOfTwoTimes(), "rectified", "mean-velocity", side=2, network=shape)
    with pytest.raises(UserError, match="dropout=0.1.*lagrangian"):
        SelfDistilled(SelfDistilledConfig(name="x"), model, None)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "taught"),
    [
        *((name, False) for name in METHODS if name != "align"),
        *((name, True) for name in ("shortcut", "lagrangian", "align", "soflow")),
    ],
)
def test_training_finds_the_exact_flow_map(name, taught):
    torch.manual_seed(0)
    options = {} if name in ("shortcut", "align") else {"power": 0.5}
    if name == "shortcut":
        options["target"] = "student"
    if name == "soflow":
        options |= {"time": UNIFORM, "end": UNIFORM}
    trained = make(name, AffineInXOfTwoTimes(), taught, **options)
    before = map_error(trained.student, 1, 0)
    fit(trained, 2500)
    assert before > 0.5
    for t, s in ((1, 0), (1, 0.5), (0.5, 0)):
        error = map_error(trained.student, t, s)  # a self-distilled map is 0.1 STD off by then
        assert error < 0.15 * STD, (t, s, error, before)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("particles", [1, 4])
def test_moment_matching_finds_the_data(particles):
    """Not the flow map of the coupling: the distribution at each step count."""
    torch.manual_seed(0)
    trained = moments(AffineInXOfTwoTimes(), particles=particles, among=64)
    fit(trained, 2500)
    x = torch.randn(4000, *SHAPE, generator=torch.Generator().manual_seed(1))
    one, zero = torch.ones(4000).double() * 0.994, torch.full((4000,), 1e-3).double()
    with torch.no_grad():
        got = trained.student.map(x, one, zero)
    exact = gaussian_flow(PATH, x.double(), one, zero, MEANS, STD)
    assert abs(float(got.mean() - exact.mean())) < 0.1 * STD
    assert abs(float(got.std() / exact.std()) - 1) < 0.1
