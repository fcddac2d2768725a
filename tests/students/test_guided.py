"""A student that is told the weight of guidance equals its teacher's two evaluations in one."""

from __future__ import annotations

import pytest
import torch

import lab
from core.condition import Condition
from core.counting import count_evals
from core.data import Batch
from core.diffusion.parameterisations import ConsistencyFunction
from core.errors import UserError
from core.model import Model, ModelSpec
from core.networks.mlp import MLPConfig
from core.networks.unet import UNetConfig
from core.noise import Noise
from core.sampling.denoisers import Conditioned, Guided, denoiser_for
from core.sampling.sample import expected_nfe, sample_images
from core.setting import Setting
from core.training.method import Progress
from core.training.roles import AverageConfig, OptimizerConfig
from students.consistency import Consistency, ConsistencyConfig
from students.guided import GuidedDistillation, GuidedDistillationConfig
from tests.helpers.models import model_of

NETWORK = UNetConfig(widths=(8,), blocks=1, attention=())


def teacher_of(**changes) -> Model:
    torch.manual_seed(0)
    values = {"network": NETWORK, "prediction": "v", "channels": 1, "side": 4, "num_classes": 3}
    model = ModelSpec(**(values | {"null_trained": True} | changes)).build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def method_of(teacher: Model, **options) -> GuidedDistillation:
    config = GuidedDistillationConfig(name="guided-distillation", teacher="x", **options)
    return GuidedDistillation(config, teacher, None)


def batch_of(count: int, first: int = 0) -> Batch:
    rng = Noise(0, torch.arange(first, first + count))
    label = rng.integers(3, "label")
    return Batch(rng.normal((1, 4, 4), "data"), Condition(label=label), rng)


@pytest.mark.parametrize("network", [NETWORK, MLPConfig(width=16, blocks=2)])
def test_it_starts_as_its_teacher_whatever_the_weight(network):
    teacher = teacher_of(network=network)
    student, batch = method_of(teacher).student.eval(), batch_of(8)
    t = torch.linspace(0.1, 1, 8).double()
    for weight in (1.0, 5.0):
        told = batch.condition._replace(guidance=torch.full((8,), weight))
        with torch.no_grad():
            found, known = (
                student.output(batch.x0, t, told),
                teacher.output(batch.x0, t, batch.condition),
            )
        assert torch.allclose(found, known, atol=1e-6)


def test_the_loss_is_the_distance_to_the_guided_teacher():
    """To the two-pass denoiser of the samplers, in v, with the weight each sample was given."""
    teacher = teacher_of()
    method = method_of(teacher, weight="simple")
    batch = batch_of(16)
    found = method.loss("student", batch, Progress(0, 0, 0.0))
    eps = batch.rng.normal((1, 4, 4), "eps")
    weights = 1 + 4 * batch.rng.uniform("guidance")
    for i in range(16):
        t, label = found.t[i], batch.condition.label[i : i + 1]
        x = teacher.path.mix(batch.x0[i : i + 1], eps[i : i + 1], t)
        guided = Guided(teacher, Condition(label=label), float(weights[i]))
        with torch.no_grad():
            known = guided._output(x, t) - teacher.output(x, t, Condition(label=label))
        assert float(found.per_sample[i]) == pytest.approx(float(known.square().mean()), rel=1e-3)


@pytest.mark.parametrize("network", [NETWORK, MLPConfig(width=16, blocks=2)])
def test_it_learns_to_be_the_guided_teacher(network):
    teacher = teacher_of(network=network)
    method = method_of(teacher, weight="simple")
    role = method.roles["student"]
    role.begin(OptimizerConfig(lr=3e-3, decay="cosine"), AverageConfig(), 64)

    def error() -> float:
        test, t = batch_of(128, 10**6), torch.tensor(0.6, dtype=torch.float64)
        scale = 3.0
        two = denoiser_for(teacher, test.condition, scale)
        one = denoiser_for(method.student, test.condition, scale)
        assert isinstance(two, Guided) and isinstance(one, Conditioned)
        with torch.no_grad():
            total = (two(test.x0, t).x0 - one(test.x0, t).x0).square().mean().sqrt()
        return float(total)

    before = error()
    for i in range(250):
        method.loss(
            "student", batch_of(64, 64 * i), Progress(0, 0, 0.0)
        ).per_sample.mean().backward()
        role.step(64 * i, i / 250)
    assert error() < 0.3 * before, (error(), before)


def test_guidance_costs_one_evaluation():
    teacher = teacher_of()
    student = method_of(teacher).student.eval()
    setting = Setting(sampler="ddim", steps=4, guidance_scale=3.0)
    for model, price in ((teacher, 8), (student, 4)):
        with count_evals(model.network) as counter:
            sample_images(model, setting, torch.arange(5))
        assert counter.forwards == 5 * price
        assert expected_nfe(model, setting) == price


def test_weights_that_it_never_saw_are_refused():
    student = method_of(teacher_of(), low=1.0, high=4.0).student
    condition = Condition(label=torch.tensor([0]))
    with pytest.raises(UserError, match="guidance_scale=6.*from 1 to 4"):
        denoiser_for(student, condition, 6.0)


def test_a_student_of_a_guided_student_is_told_the_weight_too():
    """Stage two, by consistency distillation: each sample has a weight of its own, which both
    hear wherever they are asked."""
    first = method_of(teacher_of()).student.eval().requires_grad_(False)
    seen = []
    hook = first.network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["guidance"]), with_kwargs=True
    )
    config = ConsistencyConfig(name="consistency", teacher="x", solver="euler")
    method = Consistency(config, first, None)
    inner = []
    method.student.network.register_forward_pre_hook(
        lambda module, args, kwargs: inner.append(kwargs["guidance"]), with_kwargs=True
    )
    method.loss("student", batch_of(64), Progress(0, 0, 0.0))
    hook.remove()
    assert all(torch.isin(one, seen[0]).all() for one in seen + inner) and len(inner) >= 2
    assert torch.equal(inner[-1], seen[0])
    assert 1.0 <= float(seen[0].min()) < 1.3 and 4.7 < float(seen[0].max()) <= 5.0
    assert isinstance(method.student.spec.prediction, ConsistencyFunction)


def test_teachers_that_cannot_be_guided_are_refused():
    for changes, words in (
        ({"num_classes": 0}, "told classes or captions"),
        ({"null_trained": False}, "null label"),
    ):
        with pytest.raises(UserError, match=words):
            method_of(teacher_of(**changes))
    with pytest.raises(UserError, match="unet, dit and mlp can"):
        other = {"name": "generator", "widths": [8], "blocks": 1, "latent": 4}
        method_of(teacher_of(network=lab_network(other)))


def lab_network(values: dict):
    from core.networks.convolutional import GeneratorConfig

    return GeneratorConfig(**{**values, "widths": (8,)})


def test_the_method_is_in_the_registry():
    assert lab.method_class("guided-distillation") is GuidedDistillation
    assert model_of(torch.nn.Linear(1, 1), "vp-cosine").spec.guidance is None
