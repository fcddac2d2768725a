"""What `info` recommends, done, against diffusers' own scheduler with the same weights and noise:
equal where no difference is named, and really different where one is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from core.diffusion.grids import make_grid
from core.diffusion.tables import BetaTable
from core.noise import Noise
from core.sampling.denoisers import denoiser_for
from core.sampling.solvers import SAMPLERS
from teachers.diffusers_format.checkpoint import read_checkpoint
from teachers.diffusers_format.describe import describe
from teachers.diffusers_format.read import load_pretrained

diffusers = pytest.importorskip("diffusers")
from tests.helpers.checkpoints import save_checkpoint, with_scheduler

SHAPE = (2, 1, 8, 8)
DDPM, DDIM, DPM, UNIPC = (
    "DDPMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
V, COSINE = {"prediction_type": "v_prediction"}, {"beta_schedule": "squaredcos_cap_v2"}
DYNAMIC = {"thresholding": True, "sample_max_value": 100.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    one = {
        "block_out_channels": (8,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("AttnUpBlock2D",),
    }
    return save_checkpoint(
        tmp_path_factory.mktemp("published") / "tiny-ddpm", **one, add_attention=False
    )


def recommended(folder: Path, steps: int) -> torch.Tensor:
    run, schedule = load_pretrained(folder), read_checkpoint(folder).schedule
    words = schedule.sampling.split()
    options = dict(zip(words[::2], words[1::2], strict=True))
    rng = Noise(3, torch.arange(SHAPE[0]))
    grid = make_grid(options["--grid"], run.model.path, steps, schedule.steps)
    denoiser = denoiser_for(run.model, threshold=options["--threshold"])
    return SAMPLERS[options["--sampler"]].run(denoiser, rng.normal(SHAPE[1:], "prior"), grid, rng)


def published(folder: Path, name: str, steps: int, monkeypatch) -> torch.Tensor:
    network = diffusers.UNet2DModel.from_pretrained(folder / "unet").eval().requires_grad_(False)
    scheduler = getattr(diffusers, name).from_pretrained(folder / "scheduler")
    rng = Noise(3, torch.arange(SHAPE[0]))
    x = rng.normal(SHAPE[1:], "prior")
    scheduler.set_timesteps(steps)
    for i, k in enumerate(scheduler.timesteps):
        z = rng.normal(SHAPE[1:], "sampler", i + 1)
        monkeypatch.setattr(
            sys.modules[type(scheduler).__module__],
            "randn_tensor",
            lambda *a, _z=z, **b: _z,
            raising=False,
        )
        x = scheduler.step(network(x, k).sample, k, x).prev_sample
    return x


def difference(folder: Path, name: str, steps: int, monkeypatch) -> float:
    theirs = published(folder, name, steps, monkeypatch)
    assert torch.isfinite(theirs).all() and float(theirs.abs().max()) > 0.1
    return float((recommended(folder, steps) - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(
    ("name", "steps", "config"),
    [
        (DDPM, 10, {"variance_type": "fixed_large"}),
        (DDPM, 7, {"timestep_spacing": "linspace", "variance_type": "fixed_large", **V}),
        (DDPM, 15, {"timestep_spacing": "trailing", **V}),
        (DDPM, 10, {"steps_offset": 1, **V}),
        (DDPM, 10, {"clip_sample": False, "thresholding": True}),
        (DDIM, 10, {}),
        (DDIM, 10, {"clip_sample": False, "timestep_spacing": "leading", "steps_offset": 1, **V}),
        (DPM, 9, {**V}),
        (DPM, 20, {"timestep_spacing": "trailing", "thresholding": True, **V}),
    ],
)
def test_what_has_an_equal(checkpoint, tmp_path, monkeypatch, name, steps, config):
    folder = with_scheduler(checkpoint, tmp_path / "it", name, **config)
    assert read_checkpoint(folder).schedule.differs == ()
    assert difference(folder, name, steps, monkeypatch) < 1e-4


@pytest.mark.parametrize(
    ("name", "steps", "config", "words"),
    [
        (
            DDPM,
            10,
            {"timestep_spacing": "trailing", "variance_type": "fixed_large"},
            "noise that it adds in its last step",
        ),
        (
            DDPM,
            10,
            {"steps_offset": 1, "variance_type": "fixed_large"},
            "noise that it adds in its last step",
        ),
        (
            DDPM,
            10,
            {**DYNAMIC, "dynamic_thresholding_ratio": 0.6},
            "dynamic_thresholding_ratio = 0.6 (ours is 0.995)",
        ),
        (DDPM, 10, {"clip_sample_range": 0.5}, "clip_sample_range = 0.5"),
        (
            DDIM,
            15,
            {"timestep_spacing": "trailing", "clip_sample": False, **V},
            "does not divide the timesteps",
        ),
        (DDIM, 10, {"timestep_spacing": "linspace", "clip_sample": False, **V}, "linspace times"),
        (DDIM, 10, {**DYNAMIC}, "it keeps eps, our dynamic thresholding makes it anew"),
        (DPM, 10, {"lambda_min_clipped": -5.1, **COSINE}, "lambda_min_clipped = -5.1"),
        (DPM, 10, {"solver_type": "heun"}, "solver_type = 'heun'"),
        (DPM, 10, {"final_sigmas_type": "sigma_min", **V}, "final_sigmas_type = 'sigma_min'"),
        (DPM, 10, {"use_karras_sigmas": True, **V}, "use_karras_sigmas = True"),
        (UNIPC, 10, {"solver_order": 3, **V}, "the order of its last two steps"),
        (UNIPC, 10, {"solver_order": 2, **V}, "solver_order = 2 (ours is 3)"),
        (
            UNIPC,
            10,
            {"solver_order": 3, "disable_corrector": [0, 1, 2]},
            "disable_corrector = [0, 1, 2]",
        ),
    ],
)
def test_what_has_none_is_named(checkpoint, tmp_path, monkeypatch, name, steps, config, words):
    folder = with_scheduler(checkpoint, tmp_path / "it", name, **config)
    assert words in "; ".join(read_checkpoint(folder).schedule.differs)
    assert difference(folder, name, steps, monkeypatch) > 1e-3


def test_ddim_trailing_is_equal_where_the_steps_divide(checkpoint, tmp_path, monkeypatch):
    folder = with_scheduler(
        checkpoint, tmp_path / "it", DDIM, timestep_spacing="trailing", clip_sample=False, **V
    )
    assert difference(folder, DDIM, 10, monkeypatch) < 1e-4


def test_keys_left_over_from_another_scheduler(checkpoint, tmp_path, monkeypatch):
    """As diffusers leaves them when a pipeline's scheduler is exchanged: named, and not read, since
    that scheduler does not."""
    folder = with_scheduler(checkpoint, tmp_path / "it", DDPM, clip_sample=True, **V)
    config = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler").config
    diffusers.DPMSolverMultistepScheduler.from_config(config).save_pretrained(folder / "scheduler")
    schedule = read_checkpoint(folder).schedule
    assert "--threshold none" in schedule.sampling and schedule.differs == ()
    assert schedule.left_over == (f"clip_sample = True, which {DPM} does not read",)
    assert describe(load_pretrained(folder))["left over"] == schedule.left_over[0]
    assert difference(folder, DPM, 10, monkeypatch) < 1e-4

    zero = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, clip_sample=False, **V).config
    diffusers.PNDMScheduler.from_config(zero).save_pretrained(folder / "scheduler")
    read = read_checkpoint(folder)
    theirs = diffusers.PNDMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod
    assert (
        read.spec.path == "vp-linear"
        and not isinstance(read.spec.path, BetaTable)
        and float(theirs[-1]) > 4e-5
    )
    assert read.schedule.left_over == (
        "rescale_betas_zero_snr = True, which PNDMScheduler does not read",
    )
