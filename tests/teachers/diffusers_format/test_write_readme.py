"""The lines in the README of an export, run as they stand in a process that cannot import this
repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.condition import Condition
from core.diffusion.grids import make_grid
from core.diffusion.tables import BetaTable
from core.networks.diffusers import DiffusersConfig
from core.runs import Run
from core.sampling.denoisers import denoiser_for
from core.sampling.solvers import SAMPLERS
from teachers.diffusers_format.read import load_pretrained
from teachers.diffusers_format.write import export

diffusers = pytest.importorskip("diffusers")
from tests.helpers.checkpoints import UNET, save_checkpoint
from tests.teachers.diffusers_format.test_write import SMALL, TABLE, WIDE, run_of

PUBLISHED = DiffusersConfig(
    class_name="UNet2DModel", config=UNET | {"num_class_embeds": 4}, steps=200
)
# name: (the case of run_of, the number of steps it was made for, the sampler that the README names,
# and its steps there)
CASES = {
    "teacher": ((WIDE, "vp-cosine", "v", 0, None), None, "ddim", 50),
    "teacher with classes": ((SMALL, "vp-linear", "v", 10, None), None, "ddim", 50),
    "teacher on a table": (
        (SMALL, BetaTable(schedule="sigmoid", steps=200), "x0", 0, None),
        None,
        "ddim",
        50,
    ),
    "flow": ((SMALL, "rectified", "u", 10, None), None, "ddim", 50),
    "consistency": ((SMALL, "vp-cosine", "v", 10, 0.002), None, "consistency", 2),
    "2 steps": ((WIDE, "vp-cosine", "v", 0, None), 2, "ddim", 2),
    "2 steps, classes": ((SMALL, "vp-cosine", "v", 10, None), 2, "ddim", 2),
    "2 steps, of a published network": ((PUBLISHED, TABLE, "v", 4, None), 2, "ddim", 2),
}
CHILD = """
import ast, sys, torch
from diffusers import DiffusionPipeline
assert not any("core" == name for name in sys.modules)
DiffusionPipeline.numpy_to_pil = staticmethod(lambda images: images)  # not rounded to 8 bits
results = []
for folder in sys.argv[1:-1]:
    lines = open(folder + "/README.md").read().split("```python")[1].split("```")[0]
    scope = {"FOLDER": folder}
    for statement in ast.parse(lines).body:
        torch.manual_seed(5)
        exec(compile(ast.Module([statement], []), "README.md", "exec"), scope)
    images = scope["images"]
    results.append(images if torch.is_tensor(images) else torch.from_numpy(images).permute(0, 3, 1, 2))
assert not any("core" == name or name.startswith("teachers") for name in sys.modules)
torch.save(results, sys.argv[-1])
"""


class TorchNoise:
    """Stands for Noise, with the numbers that diffusers draws."""

    def normal(self, shape, stream, step=0, dtype=torch.float32) -> torch.Tensor:
        return torch.randn(16, *shape, dtype=dtype)


def made_for(run: Run, steps: int) -> Run:
    """The same run, as load(steps=...) finds it."""
    file = run.folder / "for-steps" / f"{steps:04d}" / "ema.safetensors"
    file.parent.mkdir(parents=True)
    run.weights_file.rename(file)
    return replace(run, weights_file=file)


def ours(run: Run, sampler: str, grid: str, steps: int) -> torch.Tensor:
    """Images in 0..1 from the noise that torch.manual_seed(5) gives."""
    label = torch.arange(16) % run.spec.num_classes if run.spec.num_classes else None
    T = run.spec.path.steps if isinstance(run.spec.path, BetaTable) else 1000
    torch.manual_seed(5)
    noise = torch.randn(16, 1, 8, 8)
    times = make_grid(grid, run.model.path, steps, T)
    with torch.no_grad():
        x = SAMPLERS[sampler].run(
            denoiser_for(run.model, Condition(label)), noise, times, TorchNoise()
        )
    return (x / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> dict[str, tuple[Run, Path, torch.Tensor]]:
    """Run, exported folder and what its README samples."""
    place, made = tmp_path_factory.mktemp("readme"), {}
    for i, (name, (case, steps, *_)) in enumerate(CASES.items()):
        run = run_of(place / f"run{i}", *case)
        made[name] = (made_for(run, steps) if steps else run, place / f"out{i}")
    options = {"num_class_embeds": 10, "scheduler_config": {"clip_sample": False}}
    published = save_checkpoint(place / "published", "DDIMScheduler", **options)
    made["published"] = (load_pretrained(published), place / "published out")
    for run, folder in made.values():
        export(run, folder)
    (place / "child.py").write_text(CHILD)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HOME": str(place / "hf")
    }
    command = [
        sys.executable,
        "child.py",
        *(str(folder) for _, folder in made.values()),
        str(place / "images.pt"),
    ]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    images = torch.load(place / "images.pt", weights_only=True)
    return {name: (*made[name], image) for name, image in zip(made, images, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_its_lines_sample_as_we_do(sampled, name):
    run, folder, images = sampled[name]
    _, _, sampler, many = CASES[name]
    assert f"num_inference_steps={many})" in (folder / "README.md").read_text()
    expected = ours(run, sampler, "trailing", many)
    inside = ((expected > 0) & (expected < 1)).float().mean()
    assert inside > 0.05, "all clipped: nothing was compared"
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_it_says_what_it_is_for(sampled, name):
    _, folder, _ = sampled[name]
    words, steps = (folder / "README.md").read_text(), CASES[name][1]
    origin = json.loads((folder / "fast_sampling.json").read_text())
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["timestep_spacing"] == "trailing" and origin.get("steps") == steps
    if steps:
        assert "Made to be sampled in 2 steps of DDIM with timestep_spacing trailing" in words
        assert (
            scheduler["_class_name"] == "DDIMScheduler"
            and "made for 2 steps of DDIM" in origin["time"]
        )
    else:
        assert "Made to be sampled" not in words
        assert scheduler["_class_name"] == (
            "DDPMScheduler" if "teacher" in name else "DDIMScheduler"
        )
    assert (
        load_pretrained(folder).spec.num_classes == CASES[name][0][3]
    )  # whatever the scheduler, it can be read again


def test_a_published_checkpoint_without_a_readme_gets_one(sampled):
    """Its network and scheduler by hand, since diffusers' DDPMPipeline gives no labels."""
    run, folder, images = sampled["published"]
    assert (
        "UNet2DModel as it was published, with its own DDIMScheduler"
        in (folder / "README.md").read_text()
    )
    torch.testing.assert_close(images, ours(run, "ddim", "leading", 50), rtol=0, atol=1e-4)
