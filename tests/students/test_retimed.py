"""A network that is told the time on another scale: the same function, with another derivative."""

from __future__ import annotations

import pytest
import torch

from core.condition import UNCONDITIONED, Condition
from core.data import Batch
from core.data.densities import eight_gaussians
from core.diffusion.paths import make_path
from core.errors import UserError
from core.model import Model, ModelSpec
from core.networks.affine import AffineConfig
from core.networks.mlp import MLPConfig
from core.networks.unet import UNetConfig
from core.noise import Noise
from core.training.derivatives import jvp
from core.training.method import Method, Progress
from core.training.roles import AverageConfig, OptimizerConfig
from students.retimed import retimed
from students.scm import SCM, SCMConfig
from students.teacher import consistency_copy, ode_step
from teachers.ddpm import DDPM, DDPMConfig
from teachers.exact import mixture_model

SIZE = 512


def spec_of(network, **changes) -> ModelSpec:
    given = {"path": "vp-cosine", "prediction": "v", "channels": 2, "side": 1, "num_classes": 0}
    return ModelSpec(network=network, **{**given, **changes})


def with_an_output(model: Model) -> Model:
    """Heads and residual branches begin at zero: here they do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if not bool(parameter.any()):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_a_smooth_network_stays_what_it_is(network):
    """At scale 3 the waves are smooth: scale 1 can be the same function of time."""
    torch.manual_seed(0)
    if network == "mlp":
        spec, shape = spec_of(MLPConfig(width=32, time_scale=3)), (2, 1, 1)
    else:
        unet = UNetConfig(widths=(16,), blocks=1, attention=(), time_scale=3)
        spec, shape = spec_of(unet, channels=1, side=4, num_classes=3), (1, 4, 4)
    model = with_an_output(spec.build())
    other = retimed(model.requires_grad_(False), 1.0)  # as a teacher is loaded
    x, t = torch.randn(64, *shape), torch.rand(64, dtype=torch.float64)
    label = torch.arange(64) % 3 if spec.num_classes else None
    with torch.no_grad():
        was, now = (one.output(x, t, Condition(label=label)) for one in (model, other))
        still = model.output(x, 0 * t + 0.5, Condition(label=label))
    assert float((now - was).norm()) < 0.1 * float((was - still).norm())  # what time does to it
    assert other.spec.network.time_scale == 1 and model.spec.network.time_scale == 3
    for name, weight in model.network.state_dict().items():
        kept = torch.equal(weight, other.network.state_dict()[name])
        assert kept != name.startswith("time."), name


def test_the_derivative_of_fast_waves_is_gone():
    torch.manual_seed(0)
    model = with_an_output(spec_of(MLPConfig(width=32)).build())
    x, t = torch.randn(200, 2, 1, 1), torch.rand(200, dtype=torch.float64)

    def speed(one: Model) -> float:
        return float(jvp(one, x, t, None, torch.zeros_like(x))[1].square().mean().sqrt())

    assert speed(retimed(model, 1.0)) < 0.05 * speed(model)


def test_a_network_without_a_scale_is_refused():
    model = spec_of(AffineConfig(latent=1), prediction="x0", discrete_steps=1).build()
    with pytest.raises(UserError, match="method.time_scale=null"):
        retimed(model, 1.0)


def learned(method: Method, steps: int, lr: float) -> Model:
    """The average of the student, after so many batches of eight Gaussians."""
    average = AverageConfig(half_life=30_000)
    for name, role in method.roles.items():
        rate = OptimizerConfig(lr=lr, betas=(0.9, 0.99), warmup=20_000, decay="linear")
        role.begin(rate if name == "student" else OptimizerConfig(lr=1e-3), average, SIZE)
    generator = torch.Generator().manual_seed(0)
    for i in range(steps):
        x0 = eight_gaussians().draw(SIZE, generator)[0].float().view(-1, 2, 1, 1)
        batch = Batch(x0, UNCONDITIONED, Noise(0, torch.arange(SIZE) + i * SIZE))
        for name in method.turn(i):
            for other, role in method.roles.items():
                role.learns(other == name)
            progress = Progress(i * SIZE, 0, i / steps)
            method.loss(name, batch, progress).per_sample.mean().backward()
            method.roles[name].step(i * SIZE, i / steps)
    role = method.roles["student"]
    return role.model.with_network(role.average().eval())


CASES = [  # the scale of the teacher, that of the student, and the error at t = 1: least, most
    (1000.0, None, 0.5, 9.0),  # 0.89
    (10.0, None, 0.3, 9.0),  # 0.56
    (1.0, None, 0.0, 0.1),  # 0.053
    (1000.0, 1.0, 0.0, 0.1),  # 0.047, by central differences and 600 steps
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("taught", "told", "least", "most"), CASES)
def test_continuous_time_needs_times_at_scale_1(taught, told, least, most):
    """sCD with an exact teacher, from a perceptron that learned its denoiser at scale `taught`: the
    root mean square error of the learned map from the exact one, where data have 1."""
    data, path = eight_gaussians(), make_path("vp-cosine")
    means = data.means[:, :, None, None]
    exact = mixture_model(path, means, torch.full((8,), data.std), torch.ones(8))
    torch.manual_seed(0)
    first = spec_of(MLPConfig(width=64, time_scale=taught), codec="identity").build()
    first = learned(DDPM(DDPMConfig(name="ddpm"), first, None), 1500, 2e-3)
    start = first if told is None else retimed(first, told)
    config = SCMConfig(name="scm", teacher="exact", warmup=102_400)
    student = learned(SCM(config, consistency_copy(start, 0.0), exact, None), 800, 1e-3)
    generator, found = torch.Generator().manual_seed(7), []
    x0 = data.draw(1000, generator)[0].view(-1, 2, 1, 1)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    for time in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        t = torch.full((1000,), time, dtype=torch.float64)
        x = known = path.mix(x0, noise, t)
        for i in range(64):
            known = ode_step(
                exact, "heun", known, t * (1 - i / 64), t * (63 - i) / 64, UNCONDITIONED
            )
        with torch.no_grad():
            error = (student.x0(x.float(), t).double() - known).square().mean().sqrt()
        found.append(round(float(error), 3))
    print(taught, told, found)
    assert least < found[-1] < most, found
