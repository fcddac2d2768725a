"""DMD2, f-distill and SiD against closed forms, on Gaussians: what the fake score learns, what the
student's gradient is, and where the game ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import students.distribution
from core.condition import UNCONDITIONED
from core.data import Batch
from core.diffusion.parameterisations import from_denoised
from core.diffusion.paths import expand, make_path
from core.model import Model
from core.networks.unet import UNetConfig
from core.noise import Noise
from core.sampling.sample import sample
from core.training.method import Progress
from core.training.roles import AverageConfig, OptimizerConfig, Role
from students.distribution import DistributionMatching
from students.dmd2 import DMD2, DMD2Config
from students.sid import SiD, SiDConfig
from teachers.exact import MixtureDenoiser, mixture_model
from tests.helpers.gaussian import MEAN, SHAPE, STD, AffineInX
from tests.helpers.models import model_of

PATH = make_path("vp-cosine")
SIZE = 64
NOW = Progress(0, 0, 0.0)
CONSTANT = 1e6  # a scale that no distance reaches: losses without their normalisation


def exact(mean: float, std: float, shape: tuple[int, ...] = SHAPE) -> Model:
    """The denoiser of N(mean, std^2)."""
    one = torch.ones(1)
    return mixture_model(PATH, torch.full((1, *shape), mean), std * one, one)


class Maker(nn.Module):
    """A generator of N(b, a^2): its v at any t means x0 = a x + b."""

    def __init__(self, a: float, b: float):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
        c = PATH.at(t)
        return (expand(c.alpha, x) * x - (self.a * x + self.b)) / expand(c.sigma, x)


def built(cls, student: nn.Module, fake: nn.Module, teacher: Model, **keys) -> DistributionMatching:
    """The method with these networks for its two roles."""
    config = cls.Config(name="test", teacher="exact", **keys)
    method = cls(config, teacher, None)
    for name, network in (("student", student), ("fake", fake)):
        method.roles[name] = Role(Model(network, method.roles[name].model.spec))
    return method


def batch_of(count: int, first: int = 0, shape: tuple[int, ...] = SHAPE) -> Batch:
    rng = Noise(0, torch.arange(first, first + count))
    return Batch(torch.full((count, *shape), math.nan), UNCONDITIONED, rng)


def play(method: DistributionMatching, iterations: int, roles: tuple[str, ...], lr: float) -> None:
    for name in roles:
        optimizer = OptimizerConfig(lr=lr, decay="cosine", clip=0.0, betas=(0.0, 0.99))
        method.roles[name].begin(optimizer, AverageConfig(), SIZE)
    for i in range(iterations):
        for name in (n for n in method.turn(i) if n in roles):
            for other, role in method.roles.items():
                role.learns(other == name)
            loss = method.loss(name, batch_of(SIZE, SIZE * i), NOW)
            loss.per_sample.mean().backward()
            method.roles[name].step(0, i / iterations)


def test_the_fake_score_becomes_the_score_of_the_students_own_images():
    torch.manual_seed(0)
    method = built(DMD2, Maker(0.6, -0.4), AffineInX(), exact(MEAN, STD))
    play(method, 600, ("fake",), 5e-3)
    known, x = exact(-0.4, 0.6), torch.randn(500, *SHAPE)
    for t in torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64):
        with torch.no_grad():
            gap = method.roles["fake"].model.x0(x, t) - known.x0(x.double(), t)
            far = method.teacher.x0(x.double(), t) - known.x0(x.double(), t)
        assert float(gap.square().mean()) < 0.02 * float(far.square().mean())


class Judge(nn.Module):
    """The exact denoiser of N(mean, std^2), with the exact log of the ratio of N(real) to it."""

    def __init__(self, mean: float, std: float, real: tuple[float, float]):
        super().__init__()
        self.denoiser, self.mean, self.std, self.real = exact(mean, std, (1, 1, 1)), mean, std, real

    def forward(self, x: Tensor, t: Tensor, r=None, values: bool = False):
        v = from_denoised("v", *self.denoiser.denoised(x.double(), t), t, PATH)
        return (
            (v, log_ratio(x.flatten(1), t[:, None], self.real, (self.mean, self.std)))
            if values
            else v
        )


def log_density(x: Tensor, t: Tensor, mean, std) -> Tensor:
    c = PATH.at(t)
    return torch.distributions.Normal(
        c.alpha * mean, (c.alpha**2 * std**2 + c.sigma**2).sqrt()
    ).log_prob(x)


def log_ratio(x: Tensor, t: Tensor, real, fake) -> Tensor:
    return log_density(x, t, *real) - log_density(x, t, *fake)


F_OF = {
    "reverse-kl": lambda r: -r.log(),
    "forward-kl": lambda r: r * r.log(),
    "js": lambda r: 2 * (r * r.log() - (r + 1) * ((r + 1) / 2).log()),
}


class Nodes:
    """In place of random draws: the grid of Gauss and Hermite over two standard normals, the
    student's noise and that of the level, in float64."""

    def __init__(self, count: int):
        x, w = np.polynomial.hermite_e.hermegauss(count)
        x, w = torch.from_numpy(x), torch.from_numpy(w / w.sum())
        self.axes = {"prior": x.repeat_interleave(count), "noise": x.repeat(count)}
        self.weights = torch.outer(w, w).flatten()
        self.indices = torch.arange(count**2)

    def normal(self, shape: tuple[int, ...], stream: str) -> Tensor:
        return self.axes[stream].view(-1, *shape)

    def uniform(self, stream: str) -> Tensor:
        return torch.zeros(len(self.indices), dtype=torch.float64)


@pytest.mark.parametrize("divergence", F_OF)
def test_the_gradient_is_that_of_the_divergence(divergence, monkeypatch):
    """Of the two noised Gaussians, whose divergence is integrated on a grid of numbers. Both sides
    are quadratures in float64, so that nothing is left to chance; only the loss is float32."""
    monkeypatch.setattr(students.distribution, "SMALLEST_SCALE", CONSTANT)
    a, b, t = 0.7, 0.1, torch.tensor(0.5, dtype=torch.float64)
    keys = {"t_min": 0.5, "t_max": 0.5 + 1e-9}
    method = built(DMD2, Maker(a, b), Judge(b, a, (MEAN, STD)), exact(MEAN, STD, (1, 1, 1)), **keys)
    more = {"divergence": divergence, "ratio_min": 1e-6, "ratio_max": 1e6}
    method.config = DMD2Config(name="test", teacher="exact", **keys, **more)
    method.has_critic = divergence != "reverse-kl"
    nodes = Nodes(40)
    batch = Batch(torch.full((1600, 1, 1, 1), math.nan), UNCONDITIONED, nodes)
    (method.loss("student", batch, NOW).per_sample * nodes.weights).sum().backward()
    maker = method.student.network
    given = torch.stack([maker.a.grad, maker.b.grad]) * CONSTANT

    theta = torch.tensor([a, b], dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    own = log_density(x, t, theta[1], theta[0])
    r = (log_density(x, t, MEAN, STD) - own).exp()
    divergence_of = torch.trapezoid(own.exp() * F_OF[divergence](r), x)
    (known,) = torch.autograd.grad(divergence_of, theta)
    c = PATH.at(t)
    known = known * (c.sigma / c.alpha) ** 2  # fake - teacher is sigma^2 / alpha of the scores'
    assert torch.allclose(given, known, rtol=1e-5, atol=1e-7), (given, known)


def test_f_distill_with_the_reverse_kl_is_dmd2():
    method = built(DMD2, Maker(0.7, 0.1), Judge(0.1, 0.7, (MEAN, STD)), exact(MEAN, STD, (1, 1, 1)))
    batch = batch_of(100, shape=(1, 1, 1))
    plain = method.loss("student", batch, NOW).per_sample
    method.has_critic = True
    assert torch.equal(method.loss("student", batch, NOW).per_sample, plain)
    other = {"name": "test", "teacher": "exact", "divergence": "forward-kl"}
    method.config = DMD2Config(**other)
    assert not torch.allclose(method.loss("student", batch, NOW).per_sample, plain)


def test_sids_loss_is_zero_where_student_equals_teacher():
    teacher = exact(MEAN, STD)
    method = built(SiD, Maker(STD, MEAN), exact(MEAN, STD).network, teacher)
    loss = method.loss("student", batch_of(100), NOW).per_sample.mean()
    loss.backward()
    maker = method.student.network
    assert float(loss.detach().abs()) < 1e-6
    assert float(maker.a.grad.abs() + maker.b.grad.abs()) < 1e-6
    worse = built(SiD, Maker(0.8, MEAN), exact(MEAN, 0.8).network, teacher)
    assert float(worse.loss("student", batch_of(100), NOW).per_sample.mean().detach()) < -0.01


def test_sids_loss_is_the_distance_of_denoisers_in_expectation(monkeypatch):
    """(1 - alpha) ||T - f||^2 for the exact f, whatever alpha; both denoisers are affine."""
    monkeypatch.setattr(students.distribution, "SMALLEST_SCALE", CONSTANT)
    a, b, t = 0.7, 0.1, torch.tensor(0.4, dtype=torch.float64)
    teacher, fake, x = exact(MEAN, STD), exact(b, a), torch.linspace(-8, 8, 20_001).double()
    density = log_density(x, t, b, a).exp()
    shaped = x.view(-1, 1, 1, 1).expand(-1, *SHAPE)
    gap = (teacher.x0(shaped, t) - fake.x0(shaped, t)).square()[:, 0, 0, 0]
    known = float(torch.trapezoid(density * gap, x))
    for alpha in (0.0, 0.5, 1.2):
        keys = {"alpha": alpha, "t_min": 0.4, "t_max": 0.4 + 1e-9}
        method = built(SiD, Maker(a, b), fake.network, teacher, **keys)
        with torch.no_grad():
            loss = method.loss("student", batch_of(50_000), NOW).per_sample.double().mean()
        assert float(loss) * CONSTANT == pytest.approx((1 - alpha) * known, abs=0.03 * known)


def test_sids_gradient_goes_through_both_scores(monkeypatch):
    monkeypatch.setattr(students.distribution, "SMALLEST_SCALE", CONSTANT)

    def total(a: float, b: float) -> tuple[Tensor, Maker]:
        maker = Maker(a, b)
        method = built(SiD, maker, exact(0.0, 0.9).network, exact(MEAN, STD))
        s = method.scored(batch_of(50), UNCONDITIONED, through=True)
        gap = s.real - s.fake
        wanted = s.normalised(gap * ((s.real - s.x0) - 1.2 * gap)).sum()
        loss = method.loss("student", batch_of(50), NOW).per_sample.sum()
        assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
        return wanted, maker

    loss, maker = total(0.7, 0.1)
    loss.backward()
    h = 1e-4
    for name, grad, plus, minus in (
        ("a", maker.a.grad, (0.7 + h, 0.1), (0.7 - h, 0.1)),
        ("b", maker.b.grad, (0.7, 0.1 + h), (0.7, 0.1 - h)),
    ):
        slope = float((total(*plus)[0] - total(*minus)[0]).detach()) / (2 * h)
        assert float(grad) == pytest.approx(slope, rel=1e-4), name


def end_of_the_game(
    method: DistributionMatching, iterations: int, lr: float
) -> tuple[float, float]:
    """Mean and standard deviation of what the student makes at last, at all of its steps."""
    method.roles["fake"].settings = OptimizerConfig(lr=5e-3, clip=0.0, betas=(0.0, 0.99))
    play(method, iterations, ("fake", "student"), lr)
    with torch.no_grad():
        x0 = method.generate(method.student, Noise(1, torch.arange(5000)), UNCONDITIONED, "prior")
    return float(x0.mean()), float(x0.std())


@pytest.mark.parametrize(("cls", "keys"), [(DMD2, {"updates": 2}), (SiD, {})])
def test_the_game_ends_at_the_data(cls, keys):
    torch.manual_seed(0)
    method = built(cls, Maker(0.9, -0.1), AffineInX(), exact(MEAN, STD), **keys)
    mean, std = end_of_the_game(method, 500, 1.5e-2)
    assert mean == pytest.approx(MEAN, abs=0.05) and std == pytest.approx(STD, rel=0.12)


class Own(nn.Module):
    """The exact denoiser of what an affine student makes at both of its steps, as it is now: each
    step makes a Gaussian, and together they are a mixture."""

    def __init__(self, method: DistributionMatching):
        super().__init__()
        self.method = method

    def gaussians(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [2] of what each step makes."""
        student, times = self.method.student, self.method.times
        zero, one = torch.zeros(2, *SHAPE).double(), torch.ones(2, *SHAPE).double()
        with torch.no_grad():
            at_zero, at_one = (student.x0(x, times)[:, 0, 0, 0] for x in (zero, one))
        slope, c = at_one - at_zero, PATH.at(times[1])
        first, spread = at_zero[0], slope[0].abs()
        again = (c.alpha**2 * spread**2 + c.sigma**2).sqrt()
        mean = torch.stack([first, slope[1] * c.alpha * first + at_zero[1]])
        return mean, torch.stack([spread, slope[1].abs() * again])

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
        means, stds = self.gaussians()
        shaped = means.view(2, 1, 1, 1).expand(2, *SHAPE)
        return MixtureDenoiser(PATH, shaped, stds, torch.ones(2))(x, t)


def test_the_game_of_two_steps_ends_at_the_data():
    """Both steps end at the data, each on its own, for a mixture of two Gaussians is the data's
    only where both are. So the fake score has to tell mixtures apart: one that is affine in x sees
    two moments and is content with a first step that makes one image."""
    torch.manual_seed(0)
    method = built(DMD2, AffineInX(), AffineInX(), exact(MEAN, STD), updates=1, steps=2)
    own = Own(method)
    method.roles["fake"] = Role(Model(own, method.roles["fake"].model.spec))
    play(method, 300, ("student",), 1e-2)
    means, stds = own.gaussians()
    assert means.tolist() == pytest.approx([MEAN, MEAN], abs=0.05)
    assert stds.tolist() == pytest.approx([STD, STD], rel=0.1)


def test_sid_looks_at_no_image():
    method = built(SiD, Maker(0.7, 0.1), exact(0.0, 1.0).network, exact(MEAN, STD))
    for role in ("student", "fake"):  # the batch's images are NaN
        assert torch.isfinite(method.loss(role, batch_of(20), NOW).per_sample).all()


@pytest.mark.parametrize(("steps", "start"), [(1, 1.0), (1, 0.76), (3, 0.9)])
def test_the_student_is_trained_on_what_the_sampler_does(steps, start):
    """Each sample's step is one of the sampler's, from noise of its own."""
    keys = {"steps": steps, "start": start}
    method = built(DMD2, Maker(0.7, 0.1), AffineInX(), exact(MEAN, STD), **keys)
    rng, student = Noise(3, torch.arange(40)), method.student
    with torch.no_grad():
        given = method.generate(student, rng, UNCONDITIONED, "prior")
        if steps == 1:
            assert torch.equal(given, sample(student, student.spec.setting, rng))
            return
        # by hand: t = 0.9, 0.6, 0.3 in turn, each x0 noised to the next time
        x, made = float(PATH.sigma(torch.tensor(0.9))) * rng.normal(SHAPE, "prior"), []
        for i, s in enumerate((0.6, 0.3, 0.0)):
            made.append(0.7 * x + 0.1)
            c = PATH.at(torch.tensor(s))
            x = float(c.alpha) * made[-1] + float(c.sigma) * rng.normal(SHAPE, "prior", i + 1)
    hits = torch.stack([(given - x0).abs().flatten(1).amax(1) < 1e-5 for x0 in made])
    assert hits.sum(0).eq(1).all() and hits.any(1).all()


def test_two_time_scales():
    method = built(DMD2, Maker(0.7, 0.1), AffineInX(), exact(MEAN, STD), updates=3, fake_first=4)
    turns = [len(method.turn(step)) for step in range(10)]
    assert turns == [1, 1, 1, 1, 1, 1, 2, 1, 1, 2]


# ------------------------------------------------------------------------ guards


def test_the_gradient_stays_finite_where_student_and_teacher_agree():
    """A student that makes one image only, that of its exact teacher: the distance is 0."""
    method = built(DMD2, Maker(1e-9, MEAN), exact(0.0, 0.5).network, exact(MEAN, 1e-9))
    method.loss("student", batch_of(50), NOW).per_sample.mean().backward()
    assert 0 < float(method.student.network.b.grad.abs()) < 100
    s = method.scored(batch_of(50), UNCONDITIONED, through=False)
    assert float(s.scale.min()) == pytest.approx(0.01)


def test_bfloat16_rounds_the_difference_of_scores_away():
    """Why both scores run in float32 unless `half`: of two networks that are nearly the same,
    little of the difference is left."""
    torch.manual_seed(0)
    config = UNetConfig(widths=(16,), blocks=1, attention=())
    teacher = model_of(config.build(1, 8, 0), "vp-cosine", "v", network=config, autocast=True)
    torch.nn.init.normal_(teacher.network.head[2].weight, std=0.1)
    keys = {"name": "test", "teacher": "exact"}
    x, t = torch.randn(20, 1, 8, 8), torch.full((20,), 0.5, dtype=torch.float64)
    gaps = {}
    for half in (False, True):
        method = DMD2(DMD2Config(half=half, **keys), teacher, None)
        fake = method.roles["fake"].model
        torch.manual_seed(1)
        with torch.no_grad():
            for p in fake.network.parameters():
                p.add_(2e-4 * torch.randn_like(p))
            gaps[half] = fake.x0(x, t) - method.teacher.x0(x, t)
            fake64 = fake.with_network(fake.network.double())
            teacher64 = Model(method.teacher.network.double(), method.teacher.spec)
            known = fake64.ask(x, t, UNCONDITIONED, autocast=False)
            known = -expand(PATH.sigma(t), x).double() * (
                known - teacher64.ask(x, t, UNCONDITIONED, autocast=False)
            )
        teacher.network.float()
        error = float((gaps[half] - known).norm() / known.norm())
        assert (error > 0.3) if half else (error < 1e-2)


@pytest.mark.parametrize("keys", [{"t_min": 0.5, "t_max": 0.5}, {"ratio_min": 30.0}])
def test_limits_that_leave_nothing_are_refused(keys):
    with pytest.raises(ValueError, match="below"):
        DMD2Config(name="dmd2", teacher="x", **keys)
    assert SiDConfig(name="sid", teacher="x").alpha == 1.2
