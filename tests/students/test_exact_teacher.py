"""Progressive and consistency distillation of an exact teacher reach the exact flow map.

The data are Gaussian, so the teacher's denoiser and its probability flow are known in closed form,
and the flow map is affine in x. The student's network is affine in x with coefficients that are a
small function of t: it can represent the answer, and whether it finds it is up to the method.
"""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import students.consistency
import students.progressive
from core.data import Batch, DataConfig
from core.diffusion.paths import make_path
from core.diffusion.parameterisations import from_denoised
from core.model import Model
from core.model import ModelSpec
from core.noise import Noise
from core.training.method import Context, Progress
from students.consistency import Consistency, ConsistencyConfig
from students.progressive import Progressive, ProgressiveConfig
from teachers.exact import MixtureDenoiser, gaussian_flow
from tests.helpers.gaussian import MEAN, SHAPE, STD, AffineInX


def exact_teacher(path_name: str) -> Model:
    path = make_path(path_name)
    one = torch.ones(1)
    return Model(MixtureDenoiser(path, torch.full((1, *SHAPE), MEAN), STD * one, one), path, "v")


def build(monkeypatch, module, cls, config, path: str, teacher: Model | None = None):
    """The method with an exact teacher and an affine student in place of trained runs."""
    torch.manual_seed(0)
    teacher = teacher or exact_teacher(path)
    spec = ModelSpec(channels=1, side=2, num_classes=0, path=path, prediction=teacher.prediction)
    run = SimpleNamespace(name="exact", model=teacher, spec=spec)
    monkeypatch.setattr(module, "load_teacher", lambda folder, context: run)
    monkeypatch.setattr(module, "student_source", lambda run, context: None)
    monkeypatch.setattr(module, "trainable_copy", lambda model: Model(AffineInX(), model.path, "v"))
    return cls(config, Context(DataConfig(name="gaussian"), None, 0, torch.device("cpu"), None))


def train(method, stage: int, iterations: int, first: int, lr: float = 3e-3) -> None:
    """Adam with a cosine rate on fresh exact samples; leaves the last weights in the network."""
    optimizer = torch.optim.Adam(method.model.network.parameters(), lr=lr)
    B = 256
    for i in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * i / iterations))
        rng = Noise(0, torch.arange(B) + (first + i) * B)
        batch = Batch(MEAN + STD * rng.normal(SHAPE, "data"), None, rng)
        loss = method.loss(batch, Progress(0, stage, i / iterations)).per_sample.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(Progress(0, stage, i / iterations), B)


def one_step_error(model: Model, path_name: str, x: Tensor) -> float:
    """RMS of the student's one-step jump against the exact flow from t = 1 to 0, in units of the
    data's spread."""
    path = make_path(path_name)
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    exact = gaussian_flow(
        path, x.double(), one, zero, torch.full(SHAPE, MEAN, dtype=torch.float64), STD
    )
    with torch.no_grad():
        return float((model.x0(x, one) - exact).square().mean().sqrt()) / STD


@pytest.mark.parametrize("path", ["vp-cosine", "trigonometric"])
def test_progressive_distillation_reaches_the_exact_flow_map(monkeypatch, path):
    config = ProgressiveConfig(name="progressive", teacher="exact", start_steps=32)
    method = build(monkeypatch, students.progressive, Progressive, config, path)
    x = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(1))
    teacher_error = one_step_error(exact_teacher(path), path, x)  # one step of the teacher: far off
    stages = method.stages()
    assert [s.name for s in stages] == [f"{2 * n} to {n} steps" for n in (32, 16, 8, 4, 2, 1)]
    for k in range(len(stages)):
        if (
            k == 1
        ):  # from here on the teachers are former students, which have the students' network
            method.teacher = Model(AffineInX(), method.model.path, "v").requires_grad_(False)
        method.begin_stage(k, method.model.network)
        train(method, k, 400, first=1000 * k)
    error = one_step_error(method.model, path, x)
    # 64 DDIM steps of the exact teacher are themselves off by about 0.02 (first order)
    assert teacher_error > 0.9
    assert error < 0.05, (error, teacher_error)


def test_progressive_target_is_two_ddim_steps_in_one():
    """Algorithm 2's x~ has the defining property: one DDIM step from (z_t, x~) lands where two
    teacher steps did."""
    teacher = exact_teacher("vp-cosine")
    method = Progressive.__new__(Progressive)
    method.teacher = teacher
    N, t = 4, torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    z = torch.randn(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = method.two_steps(z, t, N, None)
    path = teacher.path
    for i in range(4):
        now, half, end = t[i], t[i] - 0.125, t[i] - 0.25
        zi = z[i : i + 1]
        guess, eps = teacher.denoised(zi, now)
        middle = path.alpha(half) * guess + path.sigma(half) * eps
        guess, eps = teacher.denoised(middle, half)
        landed = path.alpha(end) * guess + path.sigma(end) * eps
        eps_tilde = (zi - path.alpha(now) * x0[i]) / path.sigma(now)
        assert torch.allclose(
            path.alpha(end) * x0[i] + path.sigma(end) * eps_tilde, landed, atol=1e-10
        )


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("vp-cosine", {"solver": "heun", "steps_start": 8, "steps_end": 32}),
        (
            "trigonometric",
            {"solver": "euler", "steps_start": 16, "steps_end": 64, "target_half_life": 2000.0},
        ),
    ],
)
def test_consistency_distillation_reaches_the_exact_flow_map(monkeypatch, path, options):
    config = ConsistencyConfig(name="consistency", teacher="exact", distance="squared", **options)
    method = build(monkeypatch, students.consistency, Consistency, config, path)
    original_step = method.after_step
    x = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(1))

    optimizer = torch.optim.Adam(method.model.network.parameters(), lr=3e-3)
    iterations, B = 2500, 256
    for i in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * i / iterations))
        rng = Noise(0, torch.arange(B) + i * B)
        batch = Batch(MEAN + STD * rng.normal(SHAPE, "data"), None, rng)
        progress = Progress(i * B, 0, i / iterations)
        loss = method.loss(batch, progress).per_sample.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        original_step(progress, B)
    assert one_step_error(exact_teacher(path), path, x) > 0.9
    assert one_step_error(method.model, path, x) < 0.06
    # and not only from pure noise: from everywhere on the trajectory
    s = torch.tensor(0.5, dtype=torch.float64)
    p = make_path(path)
    mean = torch.full(SHAPE, MEAN, dtype=torch.float64)
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    middle = gaussian_flow(p, x.double(), one, s, mean, STD)
    end = gaussian_flow(p, x.double(), one, zero, mean, STD)
    with torch.no_grad():
        assert float((method.model.x0(middle.float(), s) - end).square().mean().sqrt()) / STD < 0.06


class Predicts(nn.Module):
    """An exact denoiser whose output is another prediction than v."""

    def __init__(self, kind: str, path: str):
        super().__init__()
        self.kind, self.exact = kind, exact_teacher(path)

    def forward(
        self, x: Tensor, t: Tensor, r: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        return from_denoised(self.kind, *self.exact.denoised(x, t), t, self.exact.path).to(x.dtype)


@pytest.mark.parametrize(("kind", "t_min", "sigma_data"), [("x0", 0.0, 1.0), ("u", 0.01, 0.5)])
def test_consistency_distillation_of_a_teacher_that_does_not_predict_v(
    monkeypatch, kind, t_min, sigma_data
):
    """The stage of conversion makes the student the teacher's denoiser, whatever its boundary;
    distillation goes on from there."""
    options = {
        "steps_start": 8,
        "steps_end": 32,
        "distance": "squared",
        "t_min": t_min,
        "sigma_data": sigma_data,
    }
    config = ConsistencyConfig(
        name="consistency", teacher="exact", target_half_life=1000.0, **options
    )
    teacher = Model(Predicts(kind, "vp-cosine"), make_path("vp-cosine"), kind).requires_grad_(False)
    method = build(monkeypatch, students.consistency, Consistency, config, "vp-cosine", teacher)
    assert [stage.name for stage in method.stages()] == [
        "convert",
        "train",
    ] and method.spec.prediction == "v"
    method.begin_stage(0, method.model.network)
    train(method, 0, 2000, first=0)
    x = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(1))
    for t in (0.1, 0.5, 0.9, 1.0):
        at = torch.tensor(t, dtype=torch.float64)
        z = method.model.path.mix(MEAN + STD * x, x.flip(0), at)
        with torch.no_grad():
            assert (
                float((method.model.x0(z, at) - teacher.x0(z, at)).square().mean().sqrt())
                < 0.02 * STD
            ), t
    assert one_step_error(method.model, "vp-cosine", x) > 0.9  # a denoiser still
    if kind != "x0":  # what follows is the same for all
        return
    average = copy.deepcopy(method.model.network)
    method.begin_stage(1, average)
    for (
        name,
        tensor,
    ) in method.averaged.network.state_dict().items():  # the target begins there, too
        assert torch.equal(tensor, average.state_dict()[name])
    train(method, 1, 2500, first=2000)
    assert one_step_error(method.model, "vp-cosine", x) < 0.06


@pytest.mark.parametrize("t_min", [0.0, 0.002])
def test_boundary_condition_holds_for_any_network(t_min):
    from core.model import Boundary

    torch.manual_seed(0)
    model = Model(AffineInX(), make_path("vp-cosine"), "v", Boundary(t_min, 0.5))
    x = torch.randn(5, *SHAPE, dtype=torch.float64)
    t = torch.tensor(t_min, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(model.x0(x, t), x / model.path.alpha(t), atol=1e-12)
        inside = torch.tensor(0.5, dtype=torch.float64)
        assert not torch.allclose(model.x0(x, inside), x / model.path.alpha(inside), atol=1e-2)


def test_number_of_discretisation_steps_doubles_with_the_budget():
    method = Consistency.__new__(Consistency)
    method.config = ConsistencyConfig(name="consistency", teacher="", steps_start=10, steps_end=80)
    assert [method.steps(f) for f in (0.0, 0.24, 0.26, 0.51, 0.76, 1.0)] == [10, 10, 20, 40, 80, 80]
    method.config = ConsistencyConfig(name="consistency", teacher="")
    assert {method.steps(f / 10) for f in range(11)} == {18}
