"""Grids at every step count, and against diffusers' where it has the same."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler

from core.diffusion.grids import GRIDS, make_grid
from core.diffusion.paths import PATHS, make_path
from core.errors import UserError

VP = [("vp-linear", "linear"), ("vp-cosine", "squaredcos_cap_v2")]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_step_count(grid, name):
    path = make_path(name)
    for steps in [*range(1, 33), 50, 100, 250, 500, 998, 999, 1000]:
        times = make_grid(grid, path, steps)
        assert times.dtype == torch.float64 and times.shape == (steps + 1,)
        assert times[0] == 1 and times[-1] == 0
        assert (times.diff() < 0).all(), (steps, times)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("grid", GRIDS)
def test_discrete_times(grid, name):
    path = make_path(name)
    for steps in [*range(1, 33), 100, 500, 998, 999, 1000]:
        index = make_grid(grid, path, steps, discrete_steps=1000) * 1000
        torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-9)
        index = index.round().long()
        assert index[0] == 1000 and index[-1] == 0
        assert (index.diff() <= -1).all(), (steps, index)  # all distinct, so no step is lost
    # A network of few times, every one of them used
    for steps in range(1, 9):
        index = (make_grid(grid, path, steps, discrete_steps=8) * 8).round().long()
        assert index[0] == 8 and index[-1] == 0 and (index.diff() <= -1).all()


def test_discrete_times_stay_near_the_wanted_ones():
    """Rounding alone moves a time by half a step, as long as no two fall together."""
    path, checked = make_path("vp-cosine"), 0
    for grid in GRIDS:
        for steps in range(1, 100):
            wanted = make_grid(grid, path, steps)
            if wanted.diff().max() <= -1e-3:
                assert (make_grid(grid, path, steps, 1000) - wanted).abs().max() <= 0.5e-3 + 1e-12
                checked += 1
    assert checked > 100


@pytest.mark.parametrize("T", [1000, 400])
def test_trailing_at_every_step_count(T):
    """Ties between two timesteps fall as numpy's arange rounds them; where it makes a timestep too
    many, no scheduler is to be met."""
    scheduler, met = DDIMScheduler(num_train_timesteps=T, timestep_spacing="trailing"), 0
    for steps in range(1, T // 2):
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) == steps:
            times = make_grid("trailing", None, steps, T)
            assert ((times[:-1] * T).round().long() - 1).tolist() == scheduler.timesteps.tolist(), (
                steps
            )
            met += 1
    assert met > 0.8 * (T // 2)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50, 100, 1000])
def test_time_grid_is_the_trailing_spacing_of_diffusers(steps):
    """Timestep k is t = (k + 1) / 1000."""
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    ours = make_grid("time", make_path("vp-linear"), steps, discrete_steps=1000)
    assert ((ours[:-1] * 1000).round().long() - 1).tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("name, schedule", VP)
@pytest.mark.parametrize("steps", [2, 5, 20, 100])
def test_karras_grid(name, schedule, steps):
    scheduler = DPMSolverMultistepScheduler(beta_schedule=schedule)
    alphas = scheduler.alphas_cumprod.numpy().astype(np.float64)
    theirs = scheduler._convert_to_karras(
        np.sqrt((1 - alphas) / alphas)[::-1], steps
    )  # largest first
    path = make_path(name)
    ours = torch.exp(-path.lam(make_grid("karras", path, steps)[:-1]))
    torch.testing.assert_close(
        ours, torch.as_tensor(theirs, dtype=torch.float64), rtol=5e-4, atol=0
    )  # their table is float32


@pytest.mark.parametrize("name", PATHS)
def test_lam_grid_is_uniform_in_log_snr(name):
    path = make_path(name)
    lam = path.lam(make_grid("lam", path, 20)[:-1])
    lam = lam[torch.isfinite(lam)]
    gaps = lam.diff()
    torch.testing.assert_close(gaps[1:], gaps[1:2].expand(len(gaps) - 1), rtol=1e-6, atol=1e-9)
    assert float(path.time(lam[-1])) == pytest.approx(1e-3)


def test_quadratic_grid_is_denser_near_the_data():
    times = make_grid("quadratic", make_path("rectified"), 4)
    assert times.tolist() == pytest.approx([1, 9 / 16, 4 / 16, 1 / 16, 0])


def test_bad_requests():
    path = make_path("rectified")
    for steps in (0, -3):
        with pytest.raises(UserError, match=f"steps = {steps}"):
            make_grid("time", path, steps)
    with pytest.raises(UserError, match="1001.*1000"):
        make_grid("time", path, 1001, discrete_steps=1000)
    with pytest.raises(UserError, match="karras"):
        make_grid("karas", path, 10)


def test_edm_grid_against_diffusers():
    """Sigmas of Karras et al. 2022 as their scheduler in diffusers has them; none lies where a
    cosine path is but noise."""
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(18)
    for name in ("vp-cosine", "vp-linear", "rectified"):
        path = make_path(name)
        times = make_grid("edm", path, 18)
        assert times[0] == 1 and times[-1] == 0
        sigmas = torch.exp(-path.lam(times[1:-1]))
        torch.testing.assert_close(sigmas, scheduler.sigmas[1:-1].double(), rtol=1e-4, atol=0)
