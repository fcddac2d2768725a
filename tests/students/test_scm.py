"""sCM: TrigFlow against the models it is made of, the tangent against finite differences and the
closed form, and the learned map against the exact one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from core.condition import UNCONDITIONED
from core.data import Batch
from core.diffusion.parameterisations import ConsistencyFunction, from_denoised
from core.diffusion.paths import make_path
from core.diffusion.tables import BetaTable
from core.model import Model
from core.noise import Noise
from core.training.method import Progress
from students.scm import SCM, SCMConfig
from students.trigflow import TrigFlow
from teachers.exact import gaussian_flow, mixture_model
from tests.helpers.fit import fit
from tests.helpers.gaussian import MEAN, SHAPE, STD, AffineInX
from tests.helpers.models import model_of
from tests.students.test_consistency_training import batch_of, error_of

SMOOTH = {"warmup": 0, "time": {"name": "uniform"}, "prior": "none"}


def exact_teacher(path: str) -> Model:
    one, means = torch.ones(1), torch.full((1, *SHAPE), MEAN)
    return mixture_model(make_path(path), means, STD * one, one)


class ExactMap(nn.Module):
    """v of the exact consistency function of Gaussian data: its value is where the flow ends."""

    def __init__(self, path: str):
        super().__init__()
        self.path, self.one = make_path(path), nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
        zero, mean = torch.zeros_like(t), torch.full_like(x[:1], MEAN)
        x0 = gaussian_flow(self.path, x, t, zero, mean, STD)
        c = self.path.at(t)
        alpha, sigma = c.alpha.view(-1, 1, 1, 1), c.sigma.view(-1, 1, 1, 1)
        return self.one * from_denoised("v", x0, (x - alpha * x0) / sigma, t, self.path)


def method_of(network: nn.Module, path: str, teacher: Model | None, **options) -> SCM:
    if teacher is None:
        options["velocity"] = "data"
    config = SCMConfig(name="scm", teacher="exact", **options)
    return SCM(
        config, model_of(network, path, ConsistencyFunction(output="v"), side=2), teacher, None
    )


TABLE = BetaTable(schedule="scaled_linear", first=0.00085, last=0.012, steps=1000)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("vp-cosine", "v"),
        ("vp-linear", "eps"),
        (TABLE, "eps"),
        ("rectified", "u"),
        ("rectified", "v"),
        ("trigonometric", "u"),
        ("vp-cosine", ConsistencyFunction(t_min=0.01, sigma_data=0.5)),
    ],
)
def test_trigflow_makes_the_same_guess_of_x0(path, kind, sigma_data):
    """cos(a) x - sin(a) sigma_d F, of TrigFlow's own x, is the model's guess to float precision."""
    torch.manual_seed(0)
    model = model_of(AffineInX().double(), path, kind, side=2)
    x_t, t = torch.randn(50, *SHAPE, dtype=torch.float64), torch.linspace(0.02, 0.99, 50).double()
    flow = TrigFlow(model, sigma_data)
    x, angle, _ = flow.inputs(x_t, t)
    cos, sin = angle.cos().view(-1, 1, 1, 1), angle.sin().view(-1, 1, 1, 1)
    c = model.path.at(t)
    assert torch.allclose(angle.tan(), c.sigma / (sigma_data * c.alpha), rtol=1e-12)
    with torch.no_grad():
        found = cos * x - sin * sigma_data * flow.output(x, t)
        known = model.x0(x_t, t)
    assert torch.allclose(found, known, rtol=1e-9, atol=1e-9)
    # and x is cos(a) x0 + sin(a) sigma_d eps where x_t is on the path
    eps = torch.randn_like(x_t)
    mixed, _, _ = flow.inputs(model.path.mix(x_t, eps, t), t)
    assert torch.allclose(mixed, cos * x_t + sin * sigma_data * eps, atol=1e-12)


def test_v_of_a_variance_preserving_path_is_f_itself():
    torch.manual_seed(0)
    model = model_of(AffineInX(), "vp-cosine", "v", side=2)
    x, t = torch.randn(50, *SHAPE), torch.linspace(0.001, 1, 50).double()
    with torch.no_grad():
        assert torch.equal(TrigFlow(model).output(x, t), model.output(x, t))


@pytest.mark.parametrize("derivative", ["forward", "difference"])
@pytest.mark.parametrize(
    ("path", "sigma_data"), [("vp-cosine", 1.0), ("vp-linear", 1.0), ("rectified", 0.5)]
)
def test_the_tangent_is_the_derivative_of_the_consistency_function(path, sigma_data, derivative):
    """Along a curve in TrigFlow's plane, by finite differences of the model's guess of x0."""
    torch.manual_seed(0)
    options = {"sigma_data": sigma_data, "derivative": derivative}
    method = method_of(AffineInX().double(), path, None, **options)
    model, d = method.student, sigma_data
    flow = TrigFlow(model, d)
    x0, z = torch.randn(20, *SHAPE).double(), d * torch.randn(20, *SHAPE).double()
    t = torch.linspace(0.05, 0.95, 20).double()
    angle, _, _ = flow.angle(t)

    def at(shift: float) -> tuple[Tensor, Tensor, Tensor]:
        a = (angle + shift).view(-1, 1, 1, 1)
        time = model.path.time(-torch.log(d * (angle + shift).tan()))
        return a.cos() * x0 + a.sin() * z, a, time

    def f(shift: float) -> Tensor:
        x, _, time = at(shift)
        return model.x0(x * flow.angle(time)[2].view(-1, 1, 1, 1), time)

    h = 1e-5
    x, a, _ = at(0.0)
    velocity = a.cos() * z - a.sin() * x0
    with torch.no_grad():
        known = a.cos() * (f(h) - f(-h)) / (2 * h)
        found = method.tangent(x, t, velocity, 1.0, UNCONDITIONED)
    close = 1e-6 if derivative == "forward" else 2e-3
    assert float((found - known).norm() / known.norm()) < close
    half = method.tangent(x, t, velocity, 0.0, UNCONDITIONED)
    first = -a.cos().square() * (d * flow.output(x, t).detach() - velocity)
    assert torch.allclose(half, first, atol=1e-3 if derivative == "difference" else 1e-12)


@pytest.mark.parametrize("path", ["vp-cosine", "trigonometric", "vp-linear"])
def test_the_exact_map_is_a_fixed_point(path):
    teacher = exact_teacher(path)
    method = method_of(ExactMap(path), path, teacher, **SMOOTH)
    t = torch.linspace(0.05, 0.95, 20).double()
    x, _, _ = TrigFlow(method.student).inputs(torch.randn(20, *SHAPE).double(), t)
    velocity = TrigFlow(teacher).output(x, t)
    g = method.tangent(x, t, velocity, 1.0, UNCONDITIONED)
    assert float(g.abs().max()) < 1e-5
    wrong = method.tangent(x, t, 1.1 * velocity, 1.0, UNCONDITIONED)
    assert float(wrong.abs().max()) > 1e-2


def test_the_loss_pulls_by_the_normalised_tangent():
    torch.manual_seed(0)
    method = method_of(AffineInX(), "vp-cosine", exact_teacher("vp-cosine"), **SMOOTH)
    batch = batch_of(32)
    batch = batch._replace(x0=batch.x0.float())
    loss = method.loss("student", batch, Progress(0, 0, 0.0))
    t, eps = loss.t, batch.rng.normal(SHAPE, "eps")
    x = method.student.path.mix(batch.x0, eps, t)
    with torch.no_grad():
        velocity = TrigFlow(method.teacher).output(x, t).float()
        g = method.tangent(x, t, velocity, 1.0, UNCONDITIONED)
        size = g.square().flatten(1).mean(1).sqrt()
    assert torch.allclose(loss.per_sample.detach(), (size / (size + 0.1)).square(), atol=1e-5)


def test_the_weight_learns_the_logarithm_of_the_inverse_error():
    """min over w of e^w E - w is at w = -ln E."""
    torch.manual_seed(0)
    method = method_of(AffineInX(), "vp-cosine", None, **SMOOTH)
    network = method.roles["weight"].network
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    rng = Noise(0, torch.arange(256))
    batch = Batch(torch.zeros(256, 1, 1, 1), UNCONDITIONED, rng)
    t = rng.uniform("time")
    error = 0.2 + t.float() ** 2
    for _ in range(400):
        method.errors[0] = (t, error)
        optimizer.zero_grad()
        method.loss("weight", batch, Progress(0, 0, 0.0)).per_sample.mean().backward()
        optimizer.step()
    assert float((network(t) + error.log()).abs().max()) < 0.1
    assert not method.errors and not method.roles["weight"].counted


def test_a_batch_is_priced_as_documented():
    """sCD: the teacher 1, the derivative 2, the trained forward 3; the weight is no evaluation."""
    from core.counting import count_evals

    for teacher, price in ((exact_teacher("vp-cosine").requires_grad_(False), 6), (None, 5)):
        method = method_of(AffineInX(), "vp-cosine", teacher, **SMOOTH)
        networks = [role.network for role in method.roles.values() if role.counted]
        batch = batch_of(16)
        batch = batch._replace(x0=batch.x0.float())
        with count_evals(*networks, *method.helpers.values()) as counter:
            for role in method.turn(0):
                method.loss(role, batch, Progress(0, 0, 0.0))
        assert counter.evals == price * 16


@pytest.mark.slow
@pytest.mark.parametrize("with_teacher", [True, False], ids=["scd", "sct"])
def test_the_learned_map_approaches_the_exact_one(with_teacher):
    torch.manual_seed(0)
    teacher = exact_teacher("vp-cosine").requires_grad_(False) if with_teacher else None
    options = SMOOTH | {"weighting": "none"}
    method = method_of(AffineInX(), "vp-cosine", teacher, **options)
    untrained = error_of(method.student)
    fit(method, 800 if with_teacher else 3000)
    assert untrained > 0.5
    assert error_of(method.student) < 0.08
    assert error_of(method.student, 0.5) < 0.08


def test_the_second_part_of_the_tangent_is_faded_in():
    torch.manual_seed(0)
    method = method_of(AffineInX(), "vp-cosine", None, **(SMOOTH | {"warmup": 1000}))
    seen, original = [], method.tangent

    def watched(x, t, velocity, r, condition):
        seen.append(r)
        return original(x, t, velocity, r, condition)

    method.tangent = watched
    batch = batch_of(8)
    for images in (0, 250, 4000):
        method.loss("student", batch._replace(x0=batch.x0.float()), Progress(images, 0, 0.0))
    assert seen == [0.0, 0.25, 1.0]


def test_distillation_asks_for_a_teacher():
    with pytest.raises(ValueError, match="needs a teacher"):
        SCMConfig(name="scm")
    assert math.isfinite(SCMConfig(name="scm", velocity="data").normalisation)
