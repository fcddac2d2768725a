"""Knowledge distillation of a sampler whose result is known in closed form."""

from __future__ import annotations

import pytest
import torch

from core.condition import UNCONDITIONED
from core.data import Batch
from core.noise import Noise
from core.training.method import Progress
from core.training.roles import AverageConfig, OptimizerConfig
from students.knowledge import KnowledgeDistillation, KnowledgeDistillationConfig
from teachers.exact import gaussian_flow
from tests.helpers.fit import B
from tests.helpers.gaussian import MEAN, SHAPE, STD, AffineInX
from tests.helpers.models import model_of


def pairs(path, first: int) -> Batch:
    """Noise and where the exact flow takes it."""
    rng = Noise(0, torch.arange(first, first + B))
    eps = rng.normal(SHAPE, "prior")
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    x0 = gaussian_flow(path, eps, one, zero, torch.full(SHAPE, MEAN), STD)
    return Batch(x0, UNCONDITIONED, rng, eps)


@pytest.mark.parametrize(
    ("path", "kind"), [("vp-cosine", "v"), ("vp-linear", "eps"), ("rectified", "u")]
)
def test_the_student_does_in_one_step_what_the_pairs_show(path, kind):
    torch.manual_seed(0)
    teacher = model_of(AffineInX(), path, kind, side=2)
    config = KnowledgeDistillationConfig(name="knowledge-distillation", teacher="x", pairs="x")
    method = KnowledgeDistillation(config, teacher, None)
    assert method.student.spec.prediction == ("x0" if kind == "eps" else kind)
    assert method.student.spec.setting.steps == 1
    role = method.roles["student"]
    role.begin(OptimizerConfig(lr=1e-2, decay="cosine", clip=0.0), AverageConfig(), B)
    for i in range(200):
        method.loss(
            "student", pairs(teacher.path, i * B), Progress(0, 0, 0)
        ).per_sample.mean().backward()
        role.step(i * B, i / 200)
    test = pairs(teacher.path, 10**6)
    with torch.no_grad():
        found = method.student.x0(test.eps, torch.ones((), dtype=torch.float64))
    assert float((found - test.x0).square().mean().sqrt()) < 0.02 * STD
