"""Samplers against diffusers' schedulers: same network, same noise, same times, whole runs.

Their timestep k is our t = (k + 1) / 1000, and their last step goes to sigma = 0, our t = 0.
"""

from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from core.denoisers import Conditioned
from core.model import Model
from core.networks.unet import UNet
from core.noise import Noise
from core.paths import make_path
from core.samplers import SAMPLERS
from core.samplers.ddim import ddim
from core.samplers.dpm_solver import dpm_solver
from core.samplers.unipc import unipc

SCHEDULES = {"vp-linear": "linear", "vp-cosine": "squaredcos_cap_v2"}
CASES = [(path, prediction) for path in SCHEDULES for prediction in ("eps", "v")]
SHAPE = (2, 4, 4)


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(0)
    net = UNet(2, 4, widths=(8,), blocks=1, attention=()).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # away from the zeros it starts with
    return net


@pytest.fixture(scope="module")
def rng() -> Noise:
    return Noise(5, torch.arange(3))


def _timesteps(path: str, prediction: str) -> list[int]:
    """Uneven, from pure noise; on the cosine table alpha ends at 5e-5, which eps cannot be divided by in float32."""
    return [950 if (path, prediction) == ("vp-cosine", "eps") else 999, 899, 700, 650, 500, 301, 200, 120, 60, 30, 9]


def _options(path: str, prediction: str) -> dict:
    return {"beta_schedule": SCHEDULES[path], "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[prediction]}


def _ours(network, run, path, prediction, timesteps, rng, end=0.0, until=None) -> Tensor:
    """Our result, or where step `until` arrived."""
    grid = torch.tensor([(k + 1) / 1000 for k in timesteps] + [end], dtype=torch.float64)
    x, seen = rng.normal(SHAPE, "start"), []
    denoiser = Conditioned(Model(network, make_path(path), prediction))
    with torch.no_grad():
        run(denoiser, x, grid, rng, callback=lambda progress: seen.append(progress.x))
    return seen[-1 if until is None else until - 1]


def _theirs(network, scheduler, timesteps, rng, step, until=None) -> Tensor:
    x = rng.normal(SHAPE, "start")
    with torch.no_grad():
        for i, k in enumerate(timesteps[:until]):
            F = network(x, torch.full((len(x),), (k + 1) / 1000), None, None)
            x = step(F, torch.tensor(k), x, rng.normal(SHAPE, "sampler", i + 1))
    return x


def _assert_same(ours: Tensor, theirs: Tensor) -> None:
    scale = float(theirs.abs().max())
    assert 0.1 < scale < 1e3 and torch.isfinite(ours).all()
    assert float((ours - theirs).abs().max()) < 1e-4 * max(scale, 1.0)


@pytest.mark.parametrize("path, prediction", CASES)
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim(network, rng, path, prediction, eta):
    """Their spacing cannot be uneven, so ten equal steps."""
    scheduler = DDIMScheduler(
        **_options(path, prediction), clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps.tolist()
    assert timesteps == list(range(999, 0, -100))
    if (path, prediction) == ("vp-cosine", "eps"):
        timesteps = timesteps[1:]

    def step(F, k, x, z):
        return scheduler.step(F, k, x, eta=eta, variance_noise=z if eta else None).prev_sample

    ours = _ours(network, partial(ddim, eta=eta), path, prediction, timesteps, rng)
    _assert_same(ours, _theirs(network, scheduler, timesteps, rng, step))


@pytest.mark.parametrize("path, prediction", CASES)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(network, rng, path, prediction, variance, monkeypatch):
    timesteps = [*_timesteps(path, prediction), 0]
    scheduler = DDPMScheduler(**_options(path, prediction), clip_sample=False, variance_type=f"fixed_{variance}")
    scheduler.set_timesteps(timesteps=timesteps)
    z = torch.empty(0)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: z)

    def step(F, k, x, noise):
        nonlocal z
        z = noise
        return scheduler.step(F, k, x).prev_sample

    ours = _ours(network, partial(SAMPLERS["ddpm"].run, variance=variance), path, prediction, timesteps, rng)
    _assert_same(ours, _theirs(network, scheduler, timesteps, rng, step))


def test_ddpm_step_by_step(network, rng, monkeypatch):
    """The original algorithm without leaps, over the last 200 of its steps."""
    scheduler, z = DDPMScheduler(clip_sample=False), torch.empty(0)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: z)
    timesteps = list(range(199, -1, -1))

    def step(F, k, x, noise):
        nonlocal z
        z = noise
        return scheduler.step(F, k, x).prev_sample

    ours = _ours(network, SAMPLERS["ddpm"].run, "vp-linear", "eps", timesteps, rng)
    _assert_same(ours, _theirs(network, scheduler, timesteps, rng, step))


@pytest.mark.parametrize("path, prediction", CASES)
@pytest.mark.parametrize("stochastic", [False, True])
def test_dpm_solver_2m(network, rng, path, prediction, stochastic):
    """Their second order, midpoint form; only the step to zero is of first order, as ours."""
    timesteps = _timesteps(path, prediction)
    scheduler = DPMSolverMultistepScheduler(
        **_options(path, prediction),
        solver_order=2,
        solver_type="midpoint",
        algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(timesteps=timesteps)

    def step(F, k, x, z):
        return scheduler.step(F, k, x, variance_noise=z).prev_sample

    ours = _ours(network, partial(dpm_solver, order=2, stochastic=stochastic), path, prediction, timesteps, rng)
    _assert_same(ours, _theirs(network, scheduler, timesteps, rng, step))


@pytest.mark.parametrize("path, prediction", CASES)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_unipc(network, rng, path, prediction, order, end):
    """B2(h). To zero they lower the order step by step, so at order 3 the last two steps are left out; their other
    ending, at the table's first entry, keeps the order and is compared whole."""
    scheduler = UniPCMultistepScheduler(
        **_options(path, prediction),
        solver_order=order,
        solver_type="bh2",
        timestep_spacing="trailing",
        final_sigmas_type=end,
        lower_order_final=end == "zero",
    )
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps.tolist()
    if (path, prediction) == ("vp-cosine", "eps"):  # as in _timesteps
        scheduler.timesteps, scheduler.sigmas, timesteps = scheduler.timesteps[1:], scheduler.sigmas[1:], timesteps[1:]

    # Their table is float32, 3e-4 off at its first entry: the exact numbers (tests/core/test_paths.py) in its place.
    c = make_path(path).at(torch.tensor([(k + 1) / 1000 for k in timesteps] + [0.0 if end == "zero" else 1e-3]).double())
    torch.testing.assert_close(scheduler.sigmas.double(), c.sigma / c.alpha, rtol=5e-4, atol=0)
    scheduler.sigmas = c.sigma / c.alpha

    def step(F, k, x, z):
        return scheduler.step(F, k, x).prev_sample

    until = len(timesteps) - 2 if (order, end) == (3, "zero") else None
    ours = _ours(
        network, partial(unipc, order=order), path, prediction, timesteps, rng, 0.0 if end == "zero" else 1e-3, until
    )
    _assert_same(ours, _theirs(network, scheduler, timesteps, rng, step, until))
