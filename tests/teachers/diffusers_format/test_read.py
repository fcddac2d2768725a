"""Checkpoints of diffusers as our runs, against diffusers' own pipelines and schedulers with the
same weights and noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from core.condition import Condition
from core.diffusion.grids import GRID_NAMES, SPACINGS, diffusers_times, make_grid
from core.diffusion.tables import BetaTable
from core.noise import Noise
from core.runs import Run
from core.sampling.denoisers import THRESHOLDS, Conditioned, denoiser_for
from core.sampling.solvers import SAMPLERS
from core.sampling.solvers.ddim import ddim
from core.sampling.solvers.unipc import unipc
from teachers.diffusers_format.checkpoint import read_checkpoint
from teachers.diffusers_format.read import load_pretrained
from teachers.diffusers_format.schedules import DDPM_FAMILY

diffusers = pytest.importorskip("diffusers")
from tests.helpers.checkpoints import DIT, rewrite, save_checkpoint, with_scheduler

SHAPE = (2, 1, 8, 8)
T = 1000
RANDOM = (0.001 + 0.05 * torch.rand(T, generator=torch.Generator().manual_seed(1))).tolist()
SCHEDULES = {
    "linear": {"beta_schedule": "linear"},
    "linear, other ends": {"beta_schedule": "linear", "beta_start": 2e-4, "beta_end": 0.015},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "laplace": {"beta_schedule": "laplace"},
    "trained_betas": {"trained_betas": RANDOM},
}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
CASES = [
    (s, p, z)
    for s in SCHEDULES
    for p in PREDICTIONS
    for z in (False, True)
    if not (z and p == "epsilon")
]


class Recorded:
    """Noise in the order in which a torch generator gives it, for pipelines that draw their own."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, shape, stream, step=0, dtype=torch.float32):
        return torch.randn((SHAPE[0], *shape), generator=self.generator, dtype=dtype)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Of one level, which is quicker; of two, tests/teachers/diffusers_format/test_write.py."""
    one = {
        "block_out_channels": (8,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("AttnUpBlock2D",),
    }
    return save_checkpoint(
        tmp_path_factory.mktemp("published") / "tiny-ddpm", **one, add_attention=False
    )


def unet_of(folder: Path):
    return diffusers.UNet2DModel.from_pretrained(folder / "unet").eval().requires_grad_(False)


def start() -> tuple[torch.Tensor, Noise]:
    rng = Noise(3, torch.arange(SHAPE[0]))
    return rng.normal(SHAPE[1:], "prior"), rng


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    scale = float(theirs.abs().max())
    assert scale > 0.1 and torch.isfinite(theirs).all()
    return float((ours - theirs).abs().max()) / scale


def their_ddpm(
    network, scheduler, x: torch.Tensor, rng: Noise, steps: int, monkeypatch
) -> torch.Tensor:
    """DDPMScheduler with our noise."""
    import diffusers.schedulers.scheduling_ddpm as module

    scheduler.set_timesteps(steps)
    for i, k in enumerate(scheduler.timesteps):
        # It adds noise even in the step to clean data, where its own variance is 1e-20, unless the
        # timestep is 0.
        z = rng.normal(SHAPE[1:], "sampler", i + 1)
        monkeypatch.setattr(module, "randn_tensor", lambda *a, _z=z, **b: _z)
        x = scheduler.step(network(x, k).sample, k, x).prev_sample
    return x


@pytest.mark.parametrize("schedule, prediction, zero_snr", CASES)
def test_ddpm_scheduler(checkpoint, tmp_path, monkeypatch, schedule, prediction, zero_snr):
    """Ancestral sampling, in every spacing: the timesteps, the betas and the prediction are read as
    they are meant."""
    config = {
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero_snr,
        "clip_sample": False,
    } | SCHEDULES[schedule]
    folder = with_scheduler(checkpoint, tmp_path / "it", "DDPMScheduler", **config)
    run, network = load_pretrained(folder), unet_of(folder)
    for spacing in ("trailing", "leading", "linspace"):
        x, rng = start()
        ours = SAMPLERS["ddpm"].run(
            Conditioned(run.model), x, make_grid(spacing, run.model.path, 4, T), rng
        )
        scheduler = diffusers.DDPMScheduler.from_pretrained(
            folder / "scheduler", timestep_spacing=spacing
        )
        assert distance(ours, their_ddpm(network, scheduler, x, rng, 4, monkeypatch)) < 1e-4
    named = {"linear": "vp-linear", "squaredcos_cap_v2": "vp-cosine"}.get(schedule)
    assert (
        run.spec.path == named if named and not zero_snr else isinstance(run.spec.path, BetaTable)
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize(
    "spacing, offset", [("trailing", 0), ("leading", 0), ("leading", 1), ("linspace", 0)]
)
def test_ddim_scheduler(checkpoint, tmp_path, spacing, offset, to_one, prediction):
    """With steps_offset and set_alpha_to_one. For linspace it steps T // N timesteps down wherever
    it looks next."""
    config = {
        "timestep_spacing": spacing,
        "steps_offset": offset,
        "set_alpha_to_one": to_one,
        "prediction_type": prediction,
    }
    folder = with_scheduler(
        checkpoint, tmp_path / "it", "DDIMScheduler", clip_sample=False, **config
    )
    run, network = load_pretrained(folder), unet_of(folder)
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    for steps in (1, 10):
        scheduler.set_timesteps(steps)
        (x, rng), eta = start(), 0.6
        times = diffusers_times(spacing, steps, T, offset, to_first_entry=not to_one)
        assert ((times[:-1] * T).round().long() - 1).tolist() == scheduler.timesteps.tolist()
        theirs = x
        for i, k in enumerate(scheduler.timesteps):
            z = rng.normal(SHAPE[1:], "sampler", i + 1)
            theirs = scheduler.step(
                network(theirs, k).sample, k, theirs, eta=eta, variance_noise=z
            ).prev_sample
        if spacing == "linspace":
            ours = x
            for i in range(steps):
                landing = max(round(float(times[i]) * T) - T // steps, 0) or (0 if to_one else 1)
                step = torch.tensor([float(times[i]), landing / T], dtype=torch.float64)
                ours = ddim(Conditioned(run.model), ours, step, Shifted(rng, i), eta=eta)
        else:
            ours = ddim(Conditioned(run.model), x, times, rng, eta=eta)
        assert distance(ours, theirs) < 1e-4


class Shifted:
    """The noise of a later step, for steps that are taken one at a time."""

    def __init__(self, rng: Noise, by: int):
        self.rng, self.by = rng, by

    def normal(self, shape, stream, step=0, dtype=torch.float32):
        return self.rng.normal(shape, stream, step + self.by, dtype=dtype)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_multistep_schedulers(checkpoint, tmp_path, spacing, name, zero_snr):
    """Without zero terminal SNR as they are; with it they take alpha = 2^-12 for 0 at the first
    timestep, if they visit it."""
    config = {
        "timestep_spacing": spacing,
        "prediction_type": "v_prediction",
        "final_sigmas_type": "zero",
        "solver_order": 2,
    }
    folder = with_scheduler(
        checkpoint,
        tmp_path / "it",
        name,
        **config,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=zero_snr,
    )
    run, network = load_pretrained(folder), unet_of(folder)
    scheduler = getattr(diffusers, name).from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(9)
    x, _ = start()
    grid = make_grid(
        spacing if spacing == "trailing" else f"{spacing}-multistep", run.model.path, 9, T
    )
    assert ((grid[:-1] * T).round().long() - 1).tolist() == scheduler.timesteps.tolist()
    sampler = SAMPLERS["dpm++2m"].run if name.startswith("DPM") else lambda *a: unipc(*a, order=2)
    ours = sampler(Conditioned(run.model), x, grid)
    for k in scheduler.timesteps:
        x = scheduler.step(network(x, k).sample, k, x).prev_sample
    starts_at_noise = zero_snr and spacing != "leading"
    assert distance(ours, x) < (5e-3 if starts_at_noise else 1e-4)


def test_ddim_pipeline_clips_as_the_checkpoint_says(checkpoint, tmp_path):
    """From the pipeline's own noise to its pictures, with clip_sample: static-x0, or static where
    eps is made anew."""
    folder = with_scheduler(checkpoint, tmp_path / "it", "DDIMScheduler", clip_sample=True)
    run, pipeline = load_pretrained(folder), diffusers.DDIMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    grid = make_grid("leading", run.model.path, 10, T)
    for anew, threshold, other in ((None, "static-x0", "static"), (True, "static", "static-x0")):
        generator = torch.Generator().manual_seed(5)
        theirs = pipeline(
            SHAPE[0], generator, 0.0, 10, use_clipped_model_output=anew, output_type="pt"
        ).images
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
        ours, wrong = (
            ddim(denoiser_for(run.model, threshold=t), x, grid) for t in (threshold, other)
        )
        assert ((ours / 2 + 0.5).clamp(0, 1) - theirs).abs().max() < 1e-4
        assert ((wrong / 2 + 0.5).clamp(0, 1) - theirs).abs().max() > 1e-3


@pytest.mark.parametrize(
    "variance, sampler", [("fixed_small", "ddpm"), ("fixed_large", "ddpm-large")]
)
def test_ddpm_pipeline(checkpoint, tmp_path, variance, sampler):
    """As google/ddpm-cifar10-32 is configured: fixed_large, clipped, leading."""
    folder = with_scheduler(
        checkpoint, tmp_path / "it", "DDPMScheduler", variance_type=variance, clip_sample=True
    )
    run, pipeline = load_pretrained(folder), diffusers.DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(SHAPE[0], torch.Generator().manual_seed(5), 20, output_type="pt").images
    rng = Recorded(5)
    x = rng.normal(SHAPE[1:], "prior")
    ours = SAMPLERS[sampler].run(
        denoiser_for(run.model, threshold="static"),
        x,
        make_grid("leading", run.model.path, 20, T),
        rng,
    )
    assert ((ours / 2 + 0.5).clamp(0, 1) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("name", DDPM_FAMILY)
def test_every_scheduler_of_the_family_is_read(checkpoint, tmp_path, name):
    """Whatever solver a checkpoint was saved with, the betas, with that class's own defaults, are
    one table."""
    folder = with_scheduler(
        checkpoint,
        tmp_path / "it",
        name,
        beta_schedule="scaled_linear",
        beta_start=0.001,
        prediction_type="v_prediction",
    )
    read = read_checkpoint(folder)
    theirs = getattr(diffusers, name).from_pretrained(folder / "scheduler").alphas_cumprod.double()
    ours = read.spec.path.build().alpha((torch.arange(T, dtype=torch.float64) + 1) / T).square()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert read.spec.prediction == "v" and "--grid" in read.schedule.sampling
    for option, value in zip(
        read.schedule.sampling.split()[::2], read.schedule.sampling.split()[1::2], strict=True
    ):
        assert (
            value
            in {"--sampler": SAMPLERS, "--grid": GRID_NAMES, "--threshold": THRESHOLDS}[option]
        )


def test_every_spacing_is_a_grid():
    assert set(SPACINGS) < set(GRID_NAMES)
    for name in SPACINGS:
        for steps in (1, 2, 3, 7, 50, 333, 499):
            times = make_grid(name, None, steps, T)
            assert (
                times.shape == (steps + 1,)
                and times[-1] == 0
                and times[0] <= 1
                and (times.diff() < 0).all()
            )
            assert torch.equal(
                times, make_grid(name, None, steps)
            )  # of continuous models: T = 1000


def test_classes_of_a_unet(tmp_path):
    folder = save_checkpoint(tmp_path / "it", num_class_embeds=4)
    run, network = load_pretrained(folder), unet_of(folder)
    x, label = start()[0], torch.tensor([3, 1])
    assert run.spec.num_classes == 4
    t = torch.tensor(0.7, dtype=torch.float64)
    theirs = network(x, 699, class_labels=label).sample
    torch.testing.assert_close(
        run.model.output(x, t, Condition(label)), theirs, rtol=1e-5, atol=1e-6
    )
    assert (run.model.output(x, t, Condition(label.flip(0))) - theirs).abs().max() > 1e-3
    from core.errors import UserError

    with pytest.raises(UserError, match="no null label"):
        denoiser_for(run.model, Condition(label), guidance_scale=2.0)(x, t)
    # and where someone knows that the last row is the null label
    (folder / "fast_sampling.json").write_text(json.dumps({"null_label": True}))
    run = load_pretrained(folder)
    assert run.spec.num_classes == 3
    assert torch.equal(
        run.model.output(x, t), network(x, 699, class_labels=torch.tensor([3, 3])).sample
    )


def test_a_transformer(tmp_path):
    """Pixel-space DiT: classes with a null label of its own, so guidance works."""
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(**DIT)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    model.save_pretrained(tmp_path / "transformer")
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    index = {
        "_class_name": "DiTPipeline",
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    run = load_pretrained(tmp_path)
    x, label = start()[0], torch.tensor([3, 7])
    F, F_null = (
        model.eval()(x, torch.tensor([419, 419]), class_labels=c).sample
        for c in (label, torch.tensor([10, 10]))
    )
    t = torch.tensor(0.42, dtype=torch.float64)
    guided = denoiser_for(run.model, Condition(label), guidance_scale=3.0)(x, t).eps
    torch.testing.assert_close(guided, F_null + 3 * (F - F_null), rtol=1e-4, atol=1e-5)
    assert torch.equal(run.model.output(x, t), F_null)
    run.model.network.train()  # as a student is: diffusers would drop a label in ten by itself
    many = torch.full((500,), 3)
    F = run.model.output(x[:1].expand(500, -1, -1, -1), t, Condition(many))
    torch.testing.assert_close(F, F[:1].expand_as(F), rtol=1e-4, atol=1e-5)


def test_the_first_layout(checkpoint, tmp_path):
    """google/ddpm-cifar10-32: files at the root, a pickled weights file, and the old names of
    attention's tensors."""
    old = tmp_path / "old"
    old.mkdir()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in unet_of(checkpoint).state_dict().items():
        for new, former in names.items():
            name = name.replace(f".{new}.", f".{former}.")
        state[name] = tensor
    assert any("proj_attn" in name for name in state)
    torch.save(state, old / "diffusion_pytorch_model.bin")
    for file in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        (old / Path(file).name).write_bytes((checkpoint / file).read_bytes())
    rewrite(
        old / "scheduler_config.json",
        prediction_type=None,
        timestep_spacing=None,
        rescale_betas_zero_snr=None,
    )
    ours, theirs = load_pretrained(old), load_pretrained(checkpoint)
    assert ours.spec == theirs.spec
    x = start()[0]
    for t in (0.001, 0.4, 1.0):
        t = torch.tensor(t, dtype=torch.float64)
        assert torch.equal(ours.model.output(x, t), theirs.model.output(x, t))


def test_times_between_timesteps(checkpoint):
    """Every entry is the very integer; between entries the embedding goes on smoothly, with a slope
    for forward-mode rules."""
    network = load_pretrained(checkpoint).model.network
    k = torch.arange(T)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(network.timestep(((k + 1).double() / T).to(dtype)), k.float())
    assert float(network.timestep(torch.tensor([0.0005]))) == pytest.approx(-0.5)
    _, slope = torch.func.jvp(network.timestep, (torch.tensor([0.4, 0.41234]),), (torch.ones(2),))
    assert slope.tolist() == [1000, 1000]


def test_run_fields(checkpoint):
    import hashlib

    run: Run = load_pretrained(checkpoint)
    file = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    assert (
        run.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        and len(run.config_sha256) == 64
    )
    assert (run.ema, run.name, run.method, run.data, run.train_evals) == (
        "as published",
        "tiny-ddpm",
        "pretrained",
        None,
        None,
    )
    assert (run.spec.channels, run.spec.side, run.spec.num_classes, run.spec.discrete_steps) == (
        1,
        8,
        0,
        T,
    )
