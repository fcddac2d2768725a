"""The README.md of an exported model: how diffusers samples it."""

from __future__ import annotations

from core.runs import Run
from teachers.export_schedule import converts, table_steps, time_convention


def steps_made_for(run: Run) -> int | None:
    """The one number of steps that these weights were made for; None where there is no such number."""
    kept = run.folder / "for-steps"
    if not kept.is_dir():
        return None
    weights = run.weights_file.read_bytes()
    found = [int(f.parent.name) for f in kept.glob(f"*/{run.weights_file.name}") if f.read_bytes() == weights]
    return min(found, default=None)


def readme(run: Run, code: bool, what: str, steps: int | None) -> str:
    """code: whether the folder brings a pipeline of its own; what: the network, in words; steps: see steps_made_for."""
    spec = run.spec
    many, pipeline = table_steps(spec), "DiffusionPipeline" if code else "DDPMPipeline"
    scheduler = "DDIMScheduler"
    if steps is not None:
        pipeline, scheduler = pipeline if code else "DDIMPipeline", None  # it is the one in the folder
        words = f"Made to be sampled in {steps} step{'s' * (steps > 1)} of DDIM, and worse in any other number."
        if many % steps:
            words += f" {steps} does not divide {many}, so that DDIMScheduler's times and steps are off by up to one of {many}."
    elif spec.boundary_t_min is not None:
        steps, words = (
            1,
            (
                "A consistency function: one step of DDIM is its sample. In more steps, fresh noise belongs between them (jump and "
                "renoise), which no scheduler of diffusers adds for it."
            ),
        )
    elif converts(spec):
        steps, words = 50, "DDIM follows its probability flow."
    else:
        steps, words = 50, f"DDIM, here in 50 steps; without the line of the scheduler, DDPM, best in all {many}."
    names = ", ".join(sorted(filter(None, (pipeline, scheduler))))
    exchange = f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config)\n" if scheduler else ""
    trust = ", trust_remote_code=True" if code else ""
    return (
        f"# {run.name}\n\n{what}. {time_convention(many).capitalize()}. {words}\n\n"
        f"```python\nfrom diffusers import {names}\n\npipe = {pipeline}.from_pretrained(FOLDER{trust})\n{exchange}"
        f"images = pipe(batch_size=16, num_inference_steps={steps}).images\n```\n\n"
        "Written by `python -m scripts.teacher export`.\n"
    )
