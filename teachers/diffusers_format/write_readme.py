"""The README.md of an exported model: how diffusers samples it, in lines that run."""

from __future__ import annotations

import json
from typing import NamedTuple

from core.diffusion.parameterisations import ConsistencyFunction
from core.errors import UserError
from core.files import read_text
from core.runs import Run
from teachers.diffusers_format.checkpoint import Checkpoint, read_checkpoint
from teachers.diffusers_format.read import published_folder
from teachers.diffusers_format.write_schedule import converts, table_steps, time_convention

WRITTEN = "Written by `python -m scripts.teacher export`.\n"


def steps_made_for(run: Run) -> int | None:
    """The one number of steps that these weights were made for; None where there is no such number.

    Raises:
        UserError: the run keeps weights for numbers of steps, and these, its newest, are none of
            them: half of a stage.
    """
    if (folder := published_folder(run)) is not None:
        return read_checkpoint(folder).origin.steps
    kept = run.folder / "for-steps"
    if not kept.is_dir():
        return None
    if run.weights_file.parent.parent == kept:
        return int(run.weights_file.parent.name)
    weights = run.weights_file.read_bytes()
    found = {
        int(f.parent.name): f.read_bytes() == weights
        for f in kept.glob(f"[0-9]*/{run.weights_file.name}")
    }
    if not any(found.values()):
        there = ", ".join(map(str, sorted(found)))
        raise UserError(
            f"{run.folder}: its newest weights are in the middle of a stage: give --steps, there are {there}"
        )
    return min(steps for steps, same in found.items() if same)


class Recipe(NamedTuple):
    """How to sample an export. exchange: the scheduler's class and arguments that take the place of
    the folder's, if any."""

    words: str
    steps: int
    exchange: tuple[str, str] | None = None


def _recipe(run: Run, made_for: int | None) -> Recipe:
    many = table_steps(run.spec)
    if made_for is not None:
        steps = "1 step" if made_for == 1 else f"{made_for} steps"
        words = f"Made to be sampled in {steps} of DDIM with timestep_spacing trailing, and worse in any other number."
        if many % made_for:
            words += f" {made_for} does not divide {many}: DDIMScheduler's times and steps are off by up to one of {many}."
        return Recipe(words, made_for)
    if isinstance(run.spec.prediction, ConsistencyFunction):
        words = (
            "A consistency function: in one step its sample is one evaluation; in N steps, fresh noise comes between them, "
            "which LCMScheduler adds (its own boundary condition matters at the last few timesteps only)."
        )
        return Recipe(words, 2, ("LCMScheduler", f", original_inference_steps={many}"))
    steps = min(50, many)
    if converts(run.spec):
        return Recipe(
            "DDIM with timestep_spacing trailing follows its probability flow, in as many steps as you like.",
            steps,
        )
    words = (
        f"DDIM with timestep_spacing trailing, here in {steps} steps; without the line of the scheduler it is DDPM, which "
        f"adds noise at every step and takes any number up to {many}."
    )
    return Recipe(words, steps, ("DDIMScheduler", ""))


def readme(run: Run, code: bool, what: str, made_for: int | None) -> str:
    """code: whether the folder brings a pipeline of its own; what: the network, in words; made_for:
    see steps_made_for."""
    recipe = _recipe(run, made_for)
    swapped = recipe.exchange is not None
    pipeline = "DiffusionPipeline" if code else "DDPMPipeline" if swapped else "DDIMPipeline"
    lines = [
        f"pipe = {pipeline}.from_pretrained(FOLDER{', trust_remote_code=True' if code else ''})"
    ]
    if recipe.exchange is not None:
        scheduler, arguments = recipe.exchange
        lines.append(f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{arguments})")
    lines.append(f"images = pipe(batch_size=16, num_inference_steps={recipe.steps}).images")
    names = ", ".join(sorted({pipeline, *(recipe.exchange or ())[:1]}))
    words = f"{what}. {_time(run)} {recipe.words}"
    return _page(run.name, words, [f"from diffusers import {names}", "", *lines])


def readme_as_published(run: Run, checkpoint: Checkpoint) -> str:
    """Of a published checkpoint that came without one: network and scheduler by hand, which no
    pipeline need know."""
    name = "transformer" if checkpoint.class_name == "DiTTransformer2DModel" else "unet"
    spec, scheduler = run.spec, json.loads(read_text(checkpoint.scheduler_file))["_class_name"]
    label = ", class_labels=label" if spec.num_classes else ""
    steps = min(checkpoint.origin.steps or 50, checkpoint.schedule.steps)
    lines = [
        "import torch",
        f"from diffusers import {', '.join(sorted((scheduler, checkpoint.class_name)))}",
        "",
        f'network = {checkpoint.class_name}.from_pretrained(FOLDER, subfolder="{name}").eval()',
        f'scheduler = {scheduler}.from_pretrained(FOLDER, subfolder="scheduler")',
        f"scheduler.set_timesteps({steps})",
        f"x = scheduler.init_noise_sigma * torch.randn(16, {spec.channels}, {spec.side}, {spec.side})",
        *([f"label = torch.arange(16) % {spec.num_classes}"] if label else []),
        "with torch.no_grad():",
        "    for k in scheduler.timesteps:",
        f"        output = network(scheduler.scale_model_input(x, k), k.expand(16){label}).sample",
        "        x = scheduler.step(output, k, x).prev_sample",
        "images = (x / 2 + 0.5).clamp(0, 1)",
    ]
    words = f"A {checkpoint.class_name} as it was published, with its own {scheduler}. {_time(run)}"
    return _page(run.name, words, lines)


def _time(run: Run) -> str:
    return f"{time_convention(table_steps(run.spec)).capitalize()}."


def _page(title: str, words: str, lines: list[str]) -> str:
    return "\n".join([f"# {title}", "", words, "", "```python", *lines, "```", "", WRITTEN])
