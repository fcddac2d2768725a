"""Our samplers against diffusers' schedulers, with the same network and the same noise, to 1e-4.

diffusers' step k is our t = (k + 1) / 1000; a schedule handed to both as explicit integer timesteps
ends on clean data.
"""

from __future__ import annotations

import pytest
import torch

from core.networks.unet import UNet
from core.noise import Noise
from core.sampling.denoisers import Conditioned
from core.sampling.solvers.ddim import ddim
from core.sampling.solvers.dpm_solver import dpm_solver
from core.sampling.solvers.unipc import unipc
from tests.helpers.models import model_of

diffusers = pytest.importorskip("diffusers")

STEPS = [999, 899, 750, 620, 500, 380, 250, 120, 40]  # descending timesteps, unevenly spaced
SHAPE = (3, 1, 8, 8)
SCHEDULES = {
    "vp-linear": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "vp-cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(0)
    net = UNet(channels=1, side=8, widths=(16,), blocks=1, attention=(0,), patch=2)
    for p in (
        net.parameters()
    ):  # the head starts at zero; any network will do, as long as it is not constant
        torch.nn.init.normal_(p, std=0.15)
    return net.double().eval().requires_grad_(False)


def grid_of(timesteps: list[int]) -> torch.Tensor:
    return torch.cat(
        [
            (torch.tensor(timesteps, dtype=torch.float64) + 1) / 1000,
            torch.zeros(1, dtype=torch.float64),
        ]
    )


def start() -> tuple[torch.Tensor, Noise]:
    rng = Noise(7, torch.arange(SHAPE[0]))
    return rng.normal(SHAPE[1:], "prior", dtype=torch.float64), rng


def diffusers_output(network: UNet, x: torch.Tensor, k: int) -> torch.Tensor:
    return network(x, torch.full((len(x),), (k + 1) / 1000, dtype=torch.float64))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    scale = theirs.abs().max()
    assert scale > 0.1
    assert float((ours - theirs).abs().max() / scale) < 1e-4


def common(path: str, prediction: str) -> dict:
    return {
        "num_train_timesteps": 1000,
        "prediction_type": PREDICTIONS[prediction],
        **SCHEDULES[path],
    }


@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(network, path, prediction, eta):
    x, rng = start()
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        **common(path, prediction),
    )
    scheduler.set_timesteps(10)
    steps = scheduler.timesteps.tolist()
    ours = ddim(Conditioned(model_of(network, path, prediction)), x, grid_of(steps), rng, eta=eta)
    for i, k in enumerate(steps):
        z = rng.normal(SHAPE[1:], "sampler", i + 1, dtype=torch.float64) if eta > 0 else None
        x = scheduler.step(
            diffusers_output(network, x, k), k, x, eta=eta, variance_noise=z
        ).prev_sample
    assert_close(ours, x)


@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_ddpm(network, path, prediction, variance, monkeypatch):
    x, rng = start()
    ours = ddim(
        Conditioned(model_of(network, path, prediction)),
        x,
        grid_of(STEPS),
        rng,
        eta=1.0,
        variance=variance,
    )
    scheduler = diffusers.DDPMScheduler(
        clip_sample=False, variance_type=f"fixed_{variance}", **common(path, prediction)
    )
    scheduler.set_timesteps(timesteps=STEPS)
    import diffusers.schedulers.scheduling_ddpm as module

    for i, k in enumerate(STEPS):
        z = rng.normal(SHAPE[1:], "sampler", i + 1, dtype=torch.float64)
        monkeypatch.setattr(module, "randn_tensor", lambda *a, _z=z, **b: _z)
        x = scheduler.step(diffusers_output(network, x, k), k, x).prev_sample
    # The last interval ends on clean data in both; diffusers adds noise even there unless it starts
    # at its step 0.
    x = x - scheduler._get_variance(STEPS[-1]) ** 0.5 * rng.normal(
        SHAPE[1:], "sampler", len(STEPS), dtype=torch.float64
    )
    assert_close(ours, x)


@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_dpm_solver_2m(network, path, prediction, stochastic):
    x, rng = start()
    ours = dpm_solver(
        Conditioned(model_of(network, path, prediction)),
        x,
        grid_of(STEPS),
        rng,
        order=2,
        stochastic=stochastic,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=2,
        algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        solver_type="midpoint",
        final_sigmas_type="zero",
        lower_order_final=True,
        euler_at_final=False,
        **common(path, prediction),
    )
    scheduler.set_timesteps(timesteps=STEPS)
    for i, k in enumerate(STEPS):
        z = rng.normal(SHAPE[1:], "sampler", i + 1, dtype=torch.float64) if stochastic else None
        x = scheduler.step(diffusers_output(network, x, k), k, x, variance_noise=z).prev_sample
    assert_close(ours, x)


@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("order", [2, 3])
def test_unipc(network, path, prediction, order):
    x, _ = start()
    # diffusers also lowers the order of the step before the last; ours does not, so its orders are
    # given as they fall there
    ours = unipc(Conditioned(model_of(network, path, prediction)), x, grid_of(STEPS), order=order)
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order,
        solver_type="bh2",
        final_sigmas_type="zero",
        lower_order_final=order < 3,
        **common(path, prediction),
    )
    scheduler.set_timesteps(len(STEPS))
    reference = diffusers.DPMSolverMultistepScheduler(
        final_sigmas_type="zero", **common(path, prediction)
    )
    reference.set_timesteps(timesteps=STEPS)
    scheduler.timesteps, scheduler.sigmas = torch.tensor(STEPS), reference.sigmas
    scheduler.num_inference_steps = len(STEPS)
    for k in STEPS:
        if order == 3 and k == STEPS[-1]:  # the step to clean data is of first order in both
            scheduler.config.lower_order_final = True
            scheduler.register_to_config(lower_order_final=True)
        x = scheduler.step(diffusers_output(network, x, k), k, x).prev_sample
    assert_close(ours, x)
