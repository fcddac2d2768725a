"""Multistep consistency: against the exact flow between the ends of segments, and the paper's
formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.condition import UNCONDITIONED
from core.diffusion.paths import make_path
from core.errors import UserError
from core.model import Model
from core.noise import Noise
from core.sampling.sample import sample
from core.training.method import Progress
from students.multistep import MultistepConsistency, MultistepConsistencyConfig, adjusted_ddim
from teachers.exact import gaussian_flow, mixture_model
from tests.helpers.fit import fit, with_student
from tests.helpers.gaussian import MEAN, SHAPE, STD, AffineInX
from tests.helpers.models import model_of
from tests.students.test_consistency_training import batch_of
from tests.students.test_scm import ExactMap


def exact_teacher(path: str = "vp-cosine") -> Model:
    one, means = torch.ones(1), torch.full((1, *SHAPE), MEAN)
    return mixture_model(make_path(path), means, STD * one, one)


def method_of(**options) -> MultistepConsistency:
    config = MultistepConsistencyConfig(
        name="multistep-consistency", teacher="exact", **({"distance": "squared"} | options)
    )
    return MultistepConsistency(config, exact_teacher(), None)


class TwoSegments(nn.Module):
    """What the student predicts is another in each segment."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = AffineInX(), AffineInX()

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
        return torch.where((t > 0.5).view(-1, 1, 1, 1), self.high(x, t), self.low(x, t))


@pytest.mark.slow
def test_its_samples_approach_those_of_the_flow():
    torch.manual_seed(0)
    options = {"segments": 2, "solver": "heun", "steps_start": 8, "steps_end": 32}
    method = with_student(method_of(**options), TwoSegments())
    assert method.student.spec.setting.label() == "ddim, grid time, 2 steps"
    rng = Noise(0, torch.arange(500))
    noise = rng.normal(method.student.spec.shape, "prior").double()
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    mean = torch.full(SHAPE, MEAN, dtype=torch.float64)
    exact = gaussian_flow(method.student.path, noise, one, zero, mean, STD)

    def error() -> float:
        found = sample(method.student, method.student.spec.setting, rng)
        return float((found - exact).square().mean().sqrt()) / STD

    untrained = error()
    fit(method, 800, lr=1e-2)
    assert untrained > 0.5 and error() < 0.05


@pytest.mark.parametrize("s_is_end", [True, False])
def test_the_target_lands_where_the_flow_does(s_is_end):
    """With the exact function of the first segment: one DDIM step by the target from z_t ends where
    the flow through z_s does, in the segment that ends at clean data."""
    network = AffineInX().double() if s_is_end else ExactMap("vp-cosine")  # any will do at the end
    method = with_student(method_of(segments=1), network)
    path, mean = method.student.path, torch.full(SHAPE, MEAN, dtype=torch.float64)
    t = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    end = torch.zeros_like(t)
    s = end if s_is_end else t - 0.1
    z = torch.randn(3, *SHAPE, dtype=torch.float64)
    z_s = gaussian_flow(path, z, t, s, mean, STD)
    x0 = method.target(z, z_s, (t, s, end), UNCONDITIONED)
    assert torch.allclose(x0, gaussian_flow(path, z, t, end, mean, STD), atol=1e-9)


def test_the_target_inverts_ddim_at_an_inner_end():
    """invDDIM_{t->e} of z_e is the x0 whose DDIM step from z_t lands on z_e (eq. 5)."""
    method = with_student(method_of(segments=4), AffineInX().double())
    path, t = method.student.path, torch.tensor([0.7, 0.75], dtype=torch.float64)
    s, end = t - 0.1, torch.full_like(t, 0.5)
    z, z_s = torch.randn(2, 2, *SHAPE, dtype=torch.float64)
    x0 = method.target(z, z_s, (t, s, end), UNCONDITIONED)
    with torch.no_grad():
        for i in range(2):
            guess, eps = method.student.denoised(z_s[i : i + 1], s[i])
            landed = path.alpha(end[i]) * guess + path.sigma(end[i]) * eps
            eps_t = (z[i] - path.alpha(t[i]) * x0[i]) / path.sigma(t[i])
            found = path.alpha(end[i]) * x0[i] + path.sigma(end[i]) * eps_t
            assert torch.allclose(found, landed[0], atol=1e-9)


def test_adjusted_ddim_is_the_published_step():
    """Heek et al. 2024, alg. 3, with plain numbers."""
    path = make_path("vp-cosine")
    t, s = torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    x0, eps = torch.randn(2, 1, *SHAPE, dtype=torch.float64)
    variance = torch.tensor([0.07], dtype=torch.float64)
    found = adjusted_ddim(path, x0, eps, t, s, variance)
    a_t, s_t, a_s, s_s = (float(f(u)) for u in (t, s) for f in (path.alpha, path.sigma))
    z_var = (a_s - a_t * s_s / s_t) ** 2 * 0.07
    d = eps.numel()
    factor = (s_s**2 + d / float(eps.square().sum()) * z_var) ** 0.5
    assert torch.allclose(found, a_s * x0 + factor * eps, atol=1e-12)
    plain = adjusted_ddim(path, x0, eps, t, s, 0 * variance)
    assert torch.allclose(plain, path.mix(x0, eps, s), atol=1e-12)


def test_with_a_segment_for_every_teacher_step_training_is_diffusion_training():
    """Eq. 9: from data, the target is x0 itself, in the loss of v."""
    torch.manual_seed(0)
    options = {"segments": 8, "steps_start": 8, "steps_end": 8, "solver": "data"}
    method = with_student(method_of(**options), AffineInX().double())
    batch = batch_of(64)
    found = method.loss("student", batch, Progress(0, 0, 0.0))
    path, t, eps = method.student.path, found.t, batch.rng.normal(SHAPE, "eps").double()
    z = path.mix(batch.x0, eps, t)
    alpha, sigma = path.alpha(t).view(-1, 1, 1, 1), path.sigma(t).view(-1, 1, 1, 1)
    with torch.no_grad():
        error = (method.student.output(z, t) - (alpha * eps - sigma * batch.x0)).square()
    assert torch.allclose(found.per_sample.double(), error.flatten(1).mean(1), rtol=1e-4)


def test_times_stay_inside_their_segments():
    method = method_of(segments=4, steps_start=8, steps_end=32)
    assert [method.per_segment(f) for f in (0.0, 0.4, 1.0)] == [2, 4, 8]
    batch = batch_of(4000)
    t, s, end = method.times(batch, 1.0)
    assert torch.allclose(t - s, torch.full_like(t, 1 / 32)) and bool((s >= end).all())
    assert bool((t <= end + 0.25 + 1e-12).all())
    assert end.unique().tolist() == [0.0, 0.25, 0.5, 0.75] and float(t.max()) == 1.0


def test_a_teacher_without_a_boundary_is_refused():
    config = MultistepConsistencyConfig(name="multistep-consistency", teacher="x")
    with pytest.raises(UserError, match="needs v, eps or u"):
        MultistepConsistency(config, model_of(AffineInX(), "vp-cosine", "x0"), None)
    with pytest.raises(ValueError, match="segments <= steps_start"):
        MultistepConsistencyConfig(name="", teacher="x", segments=100, steps_start=64)
