"""Progressive and consistency distillation of an exact teacher reach the exact flow map.

The data are Gaussian, so the teacher's denoiser and its probability flow are known in closed form,
and the flow map is affine in x. The student's network is affine in x with coefficients that are a
small function of t: it can represent the answer, and whether it finds it is up to the method.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.condition import UNCONDITIONED
from core.diffusion.parameterisations import ConsistencyFunction, from_denoised
from core.diffusion.paths import make_path
from core.model import Model
from students.consistency import Consistency, ConsistencyConfig
from students.progressive import Progressive, ProgressiveConfig
from teachers.exact import gaussian_flow, mixture_model
from tests.helpers.fit import fit, with_student
from tests.helpers.gaussian import MEAN, SHAPE, STD, AffineInX
from tests.helpers.models import model_of


def exact_teacher(path_name: str) -> Model:
    one, means = torch.ones(1), torch.full((1, *SHAPE), MEAN)
    return mixture_model(make_path(path_name), means, STD * one, one)


def build(cls, config, teacher: Model):
    """The method with an affine student in place of a copy of its teacher."""
    torch.manual_seed(0)
    return with_student(cls(config, teacher, None), AffineInX())


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
def test_progressive_distillation_reaches_the_exact_flow_map(path):
    config = ProgressiveConfig(name="progressive", teacher="exact", start_steps=32)
    method = build(Progressive, config, exact_teacher(path))
    x = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(1))
    teacher_error = one_step_error(exact_teacher(path), path, x)  # one step of the teacher: far off
    stages = method.stages()
    assert [s.name for s in stages] == [f"{2 * n} to {n} steps" for n in (32, 16, 8, 4, 2, 1)]
    for k in range(len(stages)):
        if k == 1:  # from here on the teachers are former students, with the students' network
            method.helpers["teacher"] = AffineInX().requires_grad_(False)
        fit(method, 400, stage=k, first=1000 * k)
    error = one_step_error(method.student, path, x)
    # 64 DDIM steps of the exact teacher are themselves off by about 0.02 (first order)
    assert teacher_error > 0.9
    assert error < 0.05, (error, teacher_error)


def test_progressive_target_is_two_ddim_steps_in_one():
    """Algorithm 2's x~ has the defining property: one DDIM step from (z_t, x~) lands where two
    teacher steps did."""
    teacher = exact_teacher("vp-cosine")
    config = ProgressiveConfig(name="progressive", teacher="exact")
    method = Progressive(config, teacher, None)
    N, t = 4, torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    z = torch.randn(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = method.two_steps(z, t, N, UNCONDITIONED)
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
def test_consistency_distillation_reaches_the_exact_flow_map(path, options):
    config = ConsistencyConfig(name="consistency", teacher="exact", distance="squared", **options)
    method = build(Consistency, config, exact_teacher(path))
    x = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(1))
    fit(method, 2500)
    assert one_step_error(exact_teacher(path), path, x) > 0.9
    assert one_step_error(method.student, path, x) < 0.06
    # and not only from pure noise: from everywhere on the trajectory
    s = torch.tensor(0.5, dtype=torch.float64)
    p = make_path(path)
    mean = torch.full(SHAPE, MEAN, dtype=torch.float64)
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    middle = gaussian_flow(p, x.double(), one, s, mean, STD)
    end = gaussian_flow(p, x.double(), one, zero, mean, STD)
    with torch.no_grad():
        assert (
            float((method.student.x0(middle.float(), s) - end).square().mean().sqrt()) / STD < 0.06
        )


class Predicts(nn.Module):
    """An exact denoiser whose output is another prediction than v."""

    def __init__(self, kind: str, path: str):
        super().__init__()
        self.kind, self.exact = kind, exact_teacher(path)

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
        return from_denoised(self.kind, *self.exact.denoised(x, t), t, self.exact.path).to(x.dtype)


@pytest.mark.parametrize(("kind", "t_min", "sigma_data"), [("x0", 0.0, 1.0), ("u", 0.01, 0.5)])
def test_consistency_distillation_of_a_teacher_that_does_not_predict_v(kind, t_min, sigma_data):
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
    teacher = model_of(Predicts(kind, "vp-cosine"), "vp-cosine", kind, side=2)
    method = build(Consistency, config, teacher.requires_grad_(False))
    assert [stage.name for stage in method.stages()] == ["convert", "train"]
    fit(method, 2000)
    x = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(1))
    for t in (0.1, 0.5, 0.9, 1.0):
        at = torch.tensor(t, dtype=torch.float64)
        z = method.student.path.mix(MEAN + STD * x, x.flip(0), at)
        with torch.no_grad():
            assert (
                float((method.student.x0(z, at) - teacher.x0(z, at)).square().mean().sqrt())
                < 0.02 * STD
            ), t
    assert one_step_error(method.student, "vp-cosine", x) > 0.9  # a denoiser still
    if kind != "x0":  # what follows is the same for all
        return
    role = method.roles["student"]
    fit(method, 0, stage=1)
    for name, tensor in role.average("target").state_dict().items():  # it begins there, too
        assert torch.equal(tensor, role.average().state_dict()[name])
    fit(method, 2500, stage=1, first=2000)
    assert one_step_error(method.student, "vp-cosine", x) < 0.06


@pytest.mark.parametrize("t_min", [0.0, 0.002])
def test_boundary_condition_holds_for_any_network(t_min):
    torch.manual_seed(0)
    function = ConsistencyFunction(t_min=t_min, sigma_data=0.5)
    model = model_of(AffineInX(), "vp-cosine", function, side=2)
    x = torch.randn(5, *SHAPE, dtype=torch.float64)
    t = torch.tensor(t_min, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(model.x0(x, t), x / model.path.alpha(t), atol=1e-12)
        inside = torch.tensor(0.5, dtype=torch.float64)
        assert not torch.allclose(model.x0(x, inside), x / model.path.alpha(inside), atol=1e-2)


def test_number_of_discretisation_steps_doubles_with_the_budget():
    def steps(**options: int) -> list[int]:
        config = ConsistencyConfig(name="consistency", teacher="", **options)
        method = Consistency(config, exact_teacher("vp-cosine"), None)
        return [method.steps(f) for f in (0.0, 0.24, 0.26, 0.51, 0.76, 1.0)]

    assert steps(steps_start=10, steps_end=80) == [10, 10, 20, 40, 80, 80]
    assert set(steps()) == {18}
