"""What a scheduler's config says of its sampling, against that scheduler of diffusers itself: where
no difference is named there is none, where one is named there is one, and no key of its class is
passed over. The network is a formula, so many configs are quick."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from core.diffusion.grids import make_grid
from core.diffusion.paths import make_path
from core.errors import UserError
from core.noise import Noise
from core.sampling.denoisers import denoiser_for
from core.sampling.solvers import SAMPLERS
from teachers.diffusers_format.schedules import DDPM_FAMILY, Schedule, read_schedule
from tests.helpers.models import model_of

diffusers = pytest.importorskip("diffusers")

DDPM, DDIM, PNDM = "DDPMScheduler", "DDIMScheduler", "PNDMScheduler"
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
FEW, USUAL = (1, 2, 3), (1, 2, 3, 4, 10, 15, 30)
V, COSINE, ZERO = (
    {"prediction_type": "v_prediction"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"rescale_betas_zero_snr": True},
)
TRAILING, LEADING, LINSPACE = (
    {"timestep_spacing": spacing} for spacing in ("trailing", "leading", "linspace")
)
PLAIN, LARGE = {"clip_sample": False, **V}, {"variance_type": "fixed_large", **V}
NO_CEILING, BOUNDED = (
    {"thresholding": True, "sample_max_value": value} for value in (float("inf"), 1.2)
)


class Formula(nn.Module):
    """A smooth function of 64 pixels and t, large enough to be clipped."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = (
            torch.randn(2, 64, 64, generator=generator, dtype=torch.float64) / 8
        )

    def forward(self, x, t, r=None, label=None):
        t, flat = t.double().expand(len(x))[:, None], x.double().flatten(1)
        out = (
            torch.tanh(flat @ self.first + torch.sin(3 * t)) + 0.3 * torch.cos(5 * t)
        ) @ self.second + 0.4 * flat
        return out.view_as(x).to(x.dtype)


def saved(scheduler, folder: Path) -> Schedule:
    """As it is read from the file that diffusers writes."""
    scheduler.save_pretrained(folder)
    file = folder / "scheduler_config.json"
    return read_schedule(json.loads(file.read_text()), file)


def noise() -> tuple[Noise, torch.Tensor]:
    rng = Noise(3, torch.arange(4))
    return rng, rng.normal((1, 8, 8), "prior", dtype=torch.float64)


def ours(schedule: Schedule, steps: int) -> torch.Tensor:
    """What `info` recommends."""
    words = schedule.sampling.split()
    options = dict(zip(words[::2], words[1::2], strict=True))
    model = model_of(Formula(), schedule.path, schedule.prediction)
    denoiser = denoiser_for(model, threshold=options["--threshold"])
    rng, x = noise()
    return SAMPLERS[options["--sampler"]].run(
        denoiser, x, make_grid(options["--grid"], model.path, steps, schedule.steps), rng
    )


def theirs(folder: Path, name: str, steps: int, monkeypatch) -> torch.Tensor:
    scheduler, network = getattr(diffusers, name).from_pretrained(folder), Formula()
    scheduler.set_timesteps(steps)
    (rng, x), T = noise(), scheduler.config.num_train_timesteps
    for i, k in enumerate(scheduler.timesteps):
        z = rng.normal((1, 8, 8), "sampler", i + 1)
        monkeypatch.setattr(
            sys.modules[type(scheduler).__module__],
            "randn_tensor",
            lambda *a, _z=z, **b: _z,
            raising=False,
        )
        x = scheduler.step(network(x, (k.double() + 1) / T), k, x).prev_sample
    return x


def distance(schedule: Schedule, folder: Path, name: str, steps: int, monkeypatch) -> float:
    reference = theirs(folder, name, steps, monkeypatch)
    return float((ours(schedule, steps) - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *[
            (DDPM, {"variance_type": v, **V, **s})
            for v in ("fixed_small", "fixed_small_log")
            for s in (TRAILING, LEADING)
        ],
        (DDPM, {**TRAILING, **ZERO, **V}),
        (DDPM, {**LARGE, **LEADING}),
        (DDPM, {**LARGE, **LINSPACE, "steps_offset": 1}),  # which only leading reads
        (DDPM, {"steps_offset": 1, "num_train_timesteps": 400}),
        (DDPM, {"thresholding": True, "clip_sample_range": 3.0}),  # thresholding goes before
        (DDPM, NO_CEILING),
        (DDPM, {**PLAIN, "dynamic_thresholding_ratio": 0.5}),
        (DDIM, {**LEADING, "clip_sample": True, **V}),
        (DDIM, {**LEADING, "thresholding": True, **V}),
        (DDIM, {**LEADING, **ZERO, **PLAIN}),
        (
            DDIM,
            {**PLAIN, "steps_offset": 1},
        ),  # up to T / 2 steps: beyond, its last ends at timestep 0, and 0.5 % off
        *[
            (DPM, {"solver_order": order, **s, **V})
            for order in (1, 2)
            for s in (TRAILING, LEADING, LINSPACE)
        ],
        *[
            (DPM, {"solver_order": order, "algorithm_type": "sde-dpmsolver++", **V})
            for order in (1, 2)
        ],
        *[(DPM, {"solver_order": order, "thresholding": True, **V}) for order in (1, 2)],
        (
            DPM,
            {"lower_order_final": False, "euler_at_final": True, **V},
        ),  # the last step to clean data is of order 1 anyway
        (DPM, {"lambda_min_clipped": -5.1, **V}),  # below this table's last, -5.06
        (
            DPM,
            {"variance_type": "fixed_large", "flow_shift": 3.0, "use_dynamic_shifting": True, **V},
        ),
        (DPM, {**NO_CEILING, **V}),
        (DPM, {**LEADING, **ZERO, **V}),
    ],
)
def test_no_difference_named_and_none_there(tmp_path, monkeypatch, name, config):
    schedule = saved(getattr(diffusers, name)(**config), tmp_path)
    assert schedule.differs == () and schedule.left_over == ()
    for steps in USUAL:
        assert distance(schedule, tmp_path, name, steps, monkeypatch) < 1e-4, steps


FALLS = "the order of its last two steps, which falls from 3 to 2 and 1 (ours falls in the last alone): from 4 steps on"
LAST_NOISE = "the noise that it adds in its last step, from a timestep above 0 to clean data"
ELSEWHERE = "that its steps land elsewhere than it looks next"


@pytest.mark.parametrize(
    ("name", "config", "words", "other", "same"),
    [
        (DDPM, {**LARGE, **TRAILING}, LAST_NOISE, USUAL, ()),
        (DDPM, {**LARGE, "steps_offset": 1}, LAST_NOISE, USUAL, ()),
        (DDPM, {**V, "steps_offset": 3}, "steps_offset = 3", USUAL, ()),
        (DDPM, {**V, **BOUNDED}, "sample_max_value = 1.2 (ours has no ceiling)", USUAL, ()),
        (
            DDPM,
            {**V, "thresholding": True, "sample_max_value": 0.5},
            "sample_max_value = 0.5, below 1",
            USUAL,
            (),
        ),
        (
            DDPM,
            {**V, **NO_CEILING, "dynamic_thresholding_ratio": 0.5},
            "ratio = 0.5 (ours is 0.995)",
            USUAL,
            (),
        ),
        (
            DDIM,
            {**PLAIN, **TRAILING},
            f"does not divide the timesteps (1000), {ELSEWHERE}",
            (12, 15, 24, 30),
            (1, 2, 4, 10),
        ),
        (
            DDIM,
            {**PLAIN, **LINSPACE},
            "between linspace times, which land elsewhere",
            (2, 3, 4, 10, 15),
            (1,),
        ),
        (DDIM, {**PLAIN, "set_alpha_to_one": False}, "set_alpha_to_one = False", USUAL, ()),
        (
            DDIM,
            {**V, **BOUNDED},
            "it keeps eps, our dynamic thresholding makes it anew",
            (2, 4, 10),
            (),
        ),
        (
            DDIM,
            {**V, "clip_sample_range": 0.5},
            "clip_sample_range = 0.5 (ours clips at 1)",
            USUAL,
            (),
        ),
        (DPM, {**V, "solver_type": "heun"}, "solver_type = 'heun'", (3, 4, 10, 15, 30), (1, 2)),
        (
            DPM,
            {**V, "final_sigmas_type": "sigma_min"},
            "final_sigmas_type = 'sigma_min'",
            USUAL,
            (),
        ),
        (DPM, {**V, **COSINE, "lambda_min_clipped": -5.1}, "lambda_min_clipped = -5.1", USUAL, ()),
        (DPM, {**V, "use_karras_sigmas": True}, "use_karras_sigmas = True", (3, 4, 10), ()),
        (DPM, {**V, "use_lu_lambdas": True}, "use_lu_lambdas = True", (3, 4, 10), ()),
        (DPM, {**V, "steps_offset": 1, **LEADING}, "steps_offset = 1", USUAL, ()),
        (DPM, {**V, "solver_order": 3}, "solver_order = 3", (4, 10, 15, 30), FEW),
        (
            DPM,
            {**V, "solver_order": 3, "algorithm_type": "sde-dpmsolver++"},
            "solver_order = 3",
            (4, 10, 15, 30),
            FEW,
        ),
        (DPM, {**V, **ZERO, **TRAILING}, "2^-12 in place of alpha = 0 at timestep 999", FEW, ()),
        (
            UNIPC,
            {**V, "solver_order": 1},
            "solver_order = 1 (ours is 3): from 3 steps on",
            (3, 4, 10, 15, 30),
            (1, 2),
        ),
        (
            UNIPC,
            {**V, "solver_order": 2},
            "solver_order = 2 (ours is 3): from 4 steps on",
            (4, 10, 15, 30),
            FEW,
        ),
        (UNIPC, {**V, "solver_order": 3}, FALLS, (4, 10, 15, 30), FEW),
        (
            UNIPC,
            {**V, "solver_order": 3, "thresholding": True, **TRAILING},
            FALLS,
            (4, 10, 15, 30),
            FEW,
        ),
        (UNIPC, {**V, "solver_order": 3, "sigma_max": 5, "flow_shift": 2.0}, FALLS, (4, 10), FEW),
    ],
)
def test_one_difference_named_and_it_is_there(
    tmp_path, monkeypatch, name, config, words, other, same
):
    """other: numbers of steps where it shows; same: those where the words allow no difference."""
    schedule = saved(getattr(diffusers, name)(**config), tmp_path)
    assert len(schedule.differs) == 1 and words in schedule.differs[0], schedule.differs
    for steps in other:
        assert distance(schedule, tmp_path, name, steps, monkeypatch) > 2e-4, steps
    for steps in same:
        assert distance(schedule, tmp_path, name, steps, monkeypatch) < 1e-4, steps


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"solver_type": "bh1"}, "solver_type = 'bh1'"),
        ({"predict_x0": False}, "predict_x0 = False"),
        ({"disable_corrector": [0, 1]}, "disable_corrector = [0, 1]"),
        ({"final_sigmas_type": "sigma_min"}, "final_sigmas_type = 'sigma_min'"),
    ],
)
def test_keys_of_unipc_beside_its_order(tmp_path, monkeypatch, changed, words):
    """In 3 steps, where the order is no difference yet, each is one."""
    schedule = saved(diffusers.UniPCMultistepScheduler(**V, solver_order=3, **changed), tmp_path)
    assert schedule.differs == (FALLS, words)
    reference = theirs(tmp_path, UNIPC, 3, monkeypatch)
    assert (
        not torch.isfinite(reference).all()
        or distance(schedule, tmp_path, UNIPC, 3, monkeypatch) > 2e-4
    )


def test_where_diffusers_itself_makes_nan(tmp_path, monkeypatch):
    cases = {
        "variance_type = 'fixed_large_log' (diffusers itself makes NaN of it)": (
            DDPM,
            {"variance_type": "fixed_large_log"},
        ),
        "a division by alpha = 0 at timestep 999": (
            DPM,
            {"trained_betas": [0.01] * 999 + [1.0], **V},
        ),
    }
    for words, (name, config) in cases.items():
        schedule = saved(getattr(diffusers, name)(**config), tmp_path)
        assert schedule.differs == (words,)
        assert (
            torch.isnan(theirs(tmp_path, name, 4, monkeypatch)).any()
            and torch.isfinite(ours(schedule, 4)).all()
        )


@pytest.mark.parametrize(
    ("before", "name", "left"),
    [
        (
            diffusers.DDPMScheduler(**LARGE),
            DPM,
            ["clip_sample = True"],
        ),  # clipped by default, as CIFAR-10's checkpoint
        (diffusers.DDPMScheduler(**V), UNIPC, ["clip_sample = True"]),
        (diffusers.DDIMScheduler(**PLAIN, **ZERO), PNDM, ["rescale_betas_zero_snr = True"]),
        (
            diffusers.DDIMScheduler(**V, **ZERO),
            "LMSDiscreteScheduler",
            ["rescale_betas_zero_snr = True", "clip_sample = True"],
        ),
        (
            diffusers.DDIMScheduler(**V, **ZERO),
            "HeunDiscreteScheduler",
            ["rescale_betas_zero_snr = True"],
        ),  # it does clip
        (
            diffusers.DDIMScheduler(**PLAIN, **ZERO),
            "DEISMultistepScheduler",
            ["rescale_betas_zero_snr = True"],
        ),
        (
            diffusers.DDPMScheduler(**PLAIN, **BOUNDED),
            "EulerDiscreteScheduler",
            ["thresholding = True"],
        ),
        (diffusers.UniPCMultistepScheduler(**V), DPM, []),
        (diffusers.DPMSolverMultistepScheduler(**V), UNIPC, []),
    ],
)
def test_keys_left_over_are_named_and_not_read(tmp_path, monkeypatch, before, name, left):
    """Saved, loaded, exchanged by from_config and saved again: the commonest thing that is done to
    a published pipeline."""
    before.save_pretrained(tmp_path / "before")
    loaded = type(before).from_pretrained(tmp_path / "before")
    schedule = saved(getattr(diffusers, name).from_config(loaded.config), tmp_path / "after")
    assert schedule.left_over == tuple(f"{key}, which {name} does not read" for key in left)
    assert not any(key.split(" = ")[0] in " ".join(schedule.differs) for key in left)
    if name != "HeunDiscreteScheduler":
        assert schedule.sampling.endswith("--threshold none")
    path = make_path(schedule.path) if isinstance(schedule.path, str) else schedule.path.build()
    table = path.alpha((torch.arange(1000, dtype=torch.float64) + 1) / 1000).square()
    alphas = getattr(diffusers, name).from_pretrained(tmp_path / "after").alphas_cumprod.double()
    torch.testing.assert_close(table, alphas, rtol=1e-5, atol=0)
    if name in (DPM, UNIPC):
        assert schedule.differs == (
            () if name == DPM else ("solver_order = 2 (ours is 3): from 4 steps on",)
        )
        assert distance(schedule, tmp_path / "after", name, 3, monkeypatch) < 1e-4


# That cannot change a sample, whatever the other keys that are read here: shown above for those of
# DPM-Solver.
WITHOUT_EFFECT = {
    DPM: {"variance_type", "flow_shift", "use_dynamic_shifting", "time_shift_type"},
    UNIPC: {"flow_shift", "time_shift_type"},
}


@pytest.mark.parametrize("name", DDPM_FAMILY)
def test_no_key_of_its_class_is_passed_over(name):
    """Any key that diffusers has or will have, at another value than its default, changes what is
    read or is refused."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    defaults = {
        key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty
    }
    clips = [{"clip_sample": True}, {"clip_sample": False}]
    bases = [
        {},
        V,
        LEADING,
        BOUNDED,
        *clips,
        {"use_karras_sigmas": True},
        {"final_sigmas_type": "sigma_min"},
    ]
    bases = [
        {"_class_name": name} | {k: v for k, v in base.items() if k in defaults} for base in bases
    ]

    def read(config: dict) -> Schedule | None:
        try:
            return read_schedule(config, Path("scheduler_config.json"))
        except UserError:
            return None

    for key, default in defaults.items():
        if isinstance(default, bool):
            other = not default
        elif isinstance(default, (int, float)):
            other = 2 * default + 1 if abs(default) < float("inf") else -1.0
        else:
            other = [1] if isinstance(default, list) else "another"
        seen = any(read(base | {key: other}) != read(base) for base in bases)
        assert seen == (key not in WITHOUT_EFFECT.get(name, ())), f"{key} = {other!r}"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"num_train_timesteps": None},
            "num_train_timesteps = None: must be a number, a whole one; the default of DDPM",
        ),
        (
            {"num_train_timesteps": 1000.5},
            "num_train_timesteps = 1000.5: must be a number, a whole one",
        ),
        (
            {"beta_start": None},
            "beta_start = None: must be a number; the default of DDPMScheduler is 0.0001",
        ),
        ({"beta_end": "0.02", "beta_schedule": "sigmoid"}, "beta_end = '0.02': must be a number"),
        (
            {"clip_sample_range": None},
            "clip_sample_range = None: must be a number; the default of DDPMScheduler is 1.0",
        ),
        (
            {"thresholding": True, "sample_max_value": None},
            "sample_max_value = None: must be a number",
        ),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": None},
            "dynamic_thresholding_ratio = None: must be a number",
        ),
        (
            {"steps_offset": None},
            "steps_offset = None: must be a number, a whole one; the default of DDPMScheduler is 0",
        ),
        (
            {"trained_betas": "linear"},
            "trained_betas = 'linear': must be a list of numbers, or null",
        ),
        (
            {"trained_betas": [0.1] * 999 + [None]},
            "trained_betas = '[..., None, ...]': must be a list of numbers",
        ),
        (
            {"timestep_spacing": None},
            "timestep_spacing = None: must be one of trailing, leading, linspace",
        ),
        ({"prediction_type": ["epsilon"]}, "prediction_type = ['epsilon']: must be one of epsilon"),
        (
            {"_class_name": DPM, "solver_order": None},
            "solver_order = None: must be a number, a whole one",
        ),
        ({"_class_name": DPM, "solver_order": 0}, "solver_order = 0: must be at least 1"),
        (
            {"_class_name": DPM, "lambda_min_clipped": None},
            "lambda_min_clipped = None: must be a number",
        ),
    ],
)
def test_values_that_cannot_be_read(config, words):
    with pytest.raises(UserError) as caught:
        read_schedule({"_class_name": DDPM} | config, Path("scheduler/scheduler_config.json"))
    assert str(caught.value).startswith(
        f"scheduler/scheduler_config.json: {words}"
    ) and "\n" not in str(caught.value)


def test_a_value_that_is_not_read_may_be_anything():
    unread = {
        "clip_sample": False,
        "clip_sample_range": None,
        "sample_max_value": None,
        **COSINE,
        "beta_start": None,
    }
    plain = read_schedule({"_class_name": DDPM, "clip_sample": False, **COSINE}, Path("x"))
    assert read_schedule({"_class_name": DDPM} | unread, Path("x")) == replace(plain, left_over=())
