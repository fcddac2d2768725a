"""A teacher's velocity on another path, against the exact flow of Gaussian data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from core.condition import Condition
from core.diffusion.parameterisations import ConsistencyFunction
from core.diffusion.paths import PATHS, make_path
from core.errors import UserError
from core.networks.unet import UNet
from core.training.flow_teacher import FlowTeacher, copy_fitting, load_flow_teacher
from teachers.exact import gaussian_flow
from tests.helpers.flow_maps import MEANS, exact_teacher
from tests.helpers.gaussian import SHAPE, STD
from tests.helpers.models import model_of


@pytest.mark.parametrize("here", PATHS)
@pytest.mark.parametrize("own", PATHS)
def test_velocity_is_that_of_the_flow_on_the_path(own, here):
    """Against the difference quotient of the closed form, from nearly clean data to nearly pure
    noise."""
    path, teacher = make_path(here), FlowTeacher(exact_teacher(own), make_path(here))
    t = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64)
    x = torch.randn(5, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = 1e-6
    ends = [gaussian_flow(path, x, t, t + sign * h, MEANS, STD) for sign in (1, -1)]
    torch.testing.assert_close(teacher(x, t), (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-5)


def test_pure_noise_is_the_teachers_last_time():
    """Of a path that never gets there, and one that does."""
    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    for own in PATHS:
        u = FlowTeacher(exact_teacher(own), make_path("rectified"))(x, torch.ones(4).double())
        torch.testing.assert_close(u, x - MEANS, rtol=0.05, atol=0.05)


class Labelled(nn.Module):
    """v is a number for each label."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.tensor([1.0, 2.0, 0.5]))

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None = None, label: Tensor | None = None):
        return self.values[label].view(-1, 1, 1, 1) + 0 * x


def test_guidance_is_that_of_the_outputs():
    model = model_of(Labelled(), "rectified", "u", side=2, num_classes=2)
    x, t = torch.randn(2, *SHAPE), torch.tensor([0.3, 0.6]).double()
    u = FlowTeacher(model, model.path, 3.0)(x, t, Condition(torch.tensor([0, 1])))
    torch.testing.assert_close(u[:, 0, 0, 0], torch.tensor([2.0, 5.0]), rtol=1e-5, atol=1e-5)


def run_of(**spec) -> SimpleNamespace:
    values = {"prediction": "v", "side": 2, "num_classes": 2} | spec
    model = model_of(Labelled(), "vp-cosine", **values)
    return SimpleNamespace(spec=model.spec, model=model)


@pytest.mark.parametrize(
    ("teacher", "guidance", "says"),
    [
        ({"side": 4}, 1.0, "1x4x4 and 2 classes, and this run on 1x2x2"),
        ({"num_classes": 0}, 1.0, "0 classes"),
        ({"prediction": ConsistencyFunction()}, 1.0, "has no velocity"),
        ({"discrete_steps": 1}, 1.0, "has no velocity"),
        ({"null_trained": False}, 2.0, "never learned its null label"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(teacher, guidance, says):
    context = SimpleNamespace(load=lambda *_: run_of(**teacher), device="cpu")
    spec = run_of().spec
    assert load_flow_teacher("x", SimpleNamespace(load=lambda *_: run_of(), device="cpu"), spec, 2)
    with pytest.raises(UserError, match=f"method.teacher=x.*{says}"):
        load_flow_teacher("x", context, spec, guidance)


def test_what_fits_is_copied():
    """All but the second time's embedding, which starts without effect."""
    shape = dict(widths=(8,), blocks=1, attention=())
    teacher, student = UNet(1, 8, **shape), UNet(1, 8, second_time=True, **shape)
    with torch.no_grad():
        for p in teacher.parameters():
            p.normal_(std=0.3)
    assert copy_fitting(student, teacher) == len(teacher.state_dict())
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    torch.testing.assert_close(student(x, t, 0.5 * t), teacher(x, t))
