"""What a model is, line by line."""

from __future__ import annotations

from core.diffusion.tables import BetaTable
from core.networks.diffusers import DiffusersConfig
from core.runs import Run
from teachers.diffusers_format.checkpoint import read_checkpoint
from teachers.diffusers_format.read import published_folder


def describe(run: Run) -> dict[str, str]:
    """What it is, by subject: of a published checkpoint also how it was meant to be sampled."""
    spec, folder = run.spec, published_folder(run)
    network = run.model.network
    kind = (
        spec.network.class_name
        if isinstance(spec.network, DiffusersConfig)
        else type(network).__name__
    )
    library = "diffusers " if isinstance(spec.network, DiffusersConfig) else ""
    times = (
        f"trained at the {spec.discrete_steps} times k / {spec.discrete_steps}"
        if spec.discrete_steps
        else "trained at all times"
    )
    known = (
        isinstance(spec.network, DiffusersConfig)
        and getattr(network, "num_classes", 0)
        and not network.null_label
    )
    lines = {
        "run": str(run.folder),
        "network": f"{library}{kind}, {sum(p.numel() for p in network.parameters()):,} parameters",
        "path": f"{spec.path}, {times}",
        "prediction": str(spec.prediction),
        "images": f"{spec.channels}x{spec.side}x{spec.side}",
        **({"latents": spec.codec_words} if spec.codec_words else {}),
        "classes": f"{spec.num_classes}{', no null label' if known else ''}"
        if spec.num_classes
        else "none (unconditional)",
        "weights": f"{run.weights}, {run.weights_file}",
        "sha256": run.weights_sha256,
        "method": run.method + (f", teacher {run.teacher}" if run.teacher else ""),
        "data": run.data.name
        if run.data
        else "not said: name it where it is measured or distilled",
    }
    if folder is not None:
        checkpoint = read_checkpoint(folder)
        steps = checkpoint.schedule.steps
        lines["origin"] = f"diffusers folder {folder}" + (
            f", revision {folder.name}" if folder.parent.name == "snapshots" else ""
        )
        lines["time"] = f"timestep k (0..{steps - 1}) is t = (k + 1) / {steps}"
        lines["published sampling"] = checkpoint.schedule.sampling
        if checkpoint.schedule.differs:
            lines["without equal here"] = "; ".join(checkpoint.schedule.differs)
        if checkpoint.schedule.left_over:
            lines["left over"] = "; ".join(checkpoint.schedule.left_over)
    else:
        lines["origin"] = f"run of this repository, config {run.config_sha256[:12]}"
        if isinstance(spec.path, BetaTable) or spec.path in ("vp-linear", "vp-cosine"):
            steps = spec.path.steps if isinstance(spec.path, BetaTable) else 1000
            lines["time"] = f"entry k (0..{steps - 1}) of its table is t = (k + 1) / {steps}"
    if run.train_evals is not None:
        seconds = f", {run.train_seconds:.0f} s" if run.train_seconds is not None else ""
        lines["price"] = (
            f"{run.train_images:,} images, {run.train_evals:,.0f} network evaluations{seconds}"
        )
    else:
        lines["price"] = "not known"
    return lines
