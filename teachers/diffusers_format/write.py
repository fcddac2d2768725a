"""A run as a folder in diffusers' format: UNet2DModel where that is exact, else with a small module
beside its weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from core.autoencoders import write_autoencoder
from core.codec import Latents, LatentSpec
from core.errors import UserError
from core.files import read_text, whole_folder, write_text
from core.networks.diffusers import DiffusersConfig, diffusers_library
from core.networks.unet import UNet, UNetConfig
from core.runs import Run
from teachers.diffusers_format.checkpoint import ORIGIN, OURS, VAE, Origin, read_checkpoint
from teachers.diffusers_format.read import chosen_weights, published_folder
from teachers.diffusers_format.unet2d import unet2d_config, unet2d_state, why_not_unet2d
from teachers.diffusers_format.weights import STEM
from teachers.diffusers_format.write_readme import readme, readme_as_published, steps_made_for
from teachers.diffusers_format.write_schedule import (
    conversion_table,
    converts,
    scheduler_config,
    table_steps,
    time_convention,
)
from teachers.diffusers_format.write_sources import MODULE, PIPELINE, module_source, pipeline_source


def export(run: Run, out: Path) -> str:
    """Writes `out` and says in words what was written.

    Raises:
        UserError: `out` exists and is not empty, diffusers is not installed, a model that cannot be
            exported, or weights of a stage that is not finished (see steps_made_for).
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: choose another folder")
    diffusers = diffusers_library("exporting to its format")
    spec, source = run.spec, published_folder(run)
    if not isinstance(spec.network, (UNetConfig, DiffusersConfig)):
        raise UserError(
            f"{run.folder}: network {spec.network.name} is no denoiser and is not exported"
        )
    if isinstance(spec.network, UNetConfig):
        for key, ours in (
            ("second_time", False),
            ("time_scale", 1000.0),
            ("guidance", None),
            ("text", None),
        ):
            if (value := getattr(spec.network, key)) != ours:
                raise UserError(
                    f"{run.folder}: network.{key} = {value}: diffusers' networks have no such "
                    "embedding; only teachers, students of one time and flows are exported"
                )
    if (
        isinstance(spec.network, DiffusersConfig)
        and source is None
        and spec.network.class_name != "UNet2DModel"
    ):
        raise UserError(
            f"{run.folder}: students with a {spec.network.class_name} are not exported: diffusers has no pixel pipeline"
        )
    if isinstance(spec.network, DiffusersConfig) and source is None and converts(spec):
        raise UserError(
            f"{run.folder}: path {spec.path}, prediction {spec.prediction} of a {spec.network.class_name} is not diffusers' "
            "own (a consistency student or a flow); only eps, x0 and v on DDPM tables are exported"
        )
    with whole_folder(out) as partial:
        if source is not None:
            words = _straight(run, source, partial)
        elif isinstance(spec.network, DiffusersConfig):
            words = _diffusers_network(diffusers, run, partial)
        else:
            words = _our_unet(diffusers, run, partial)
        words += _card(run, source or run.folder, partial)
    return words


def _index(
    run: Run,
    partial: Path,
    pipeline: str | list[str],
    scheduler,
    network: list[str],
    null_label: bool = True,
) -> None:
    """model_index.json, and what it names besides the network: the scheduler, and the autoencoder
    of a model in latents."""
    scheduler.save_pretrained(partial / "scheduler")
    index = {"_class_name": pipeline, "_diffusers_version": scheduler.config["_diffusers_version"]}
    if isinstance(pipeline, list):
        index["null_label"] = null_label
    index |= {"scheduler": ["diffusers", type(scheduler).__name__], "unet": network}
    if isinstance(run.model.codec, Latents):
        write_autoencoder(run.model.codec, partial / VAE)
        index[VAE] = ["diffusers", "AutoencoderKL"]
    write_text(partial / "model_index.json", json.dumps(index, indent=2) + "\n")


def _scheduler(diffusers, run: Run):
    """DDPM for denoisers; DDIM for what was made for one number of steps of it, for flows, and for
    consistency functions, which DDPM's noise would lead astray."""
    config = scheduler_config(run.spec, run.model)
    if steps_made_for(run) is None and not converts(run.spec):
        return diffusers.DDPMScheduler(**config)
    return diffusers.DDIMScheduler(
        **{key: value for key, value in config.items() if key != "variance_type"}
    )


def _card(run: Run, folder: Path, partial: Path) -> str:
    """Passes on the rows of the card in `folder` that were measured on the weights that are
    exported, with the hash that these have in their new file (no card where there are no such
    rows), and says in words what it left out."""
    if not (folder / "card.json").is_file():
        return ""
    card = json.loads(read_text(folder / "card.json"))
    (file,) = (
        file
        for file in partial.glob("*/diffusion_pytorch_model.safetensors")
        if file.parent.name != VAE
    )
    exported = {"weights_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    same = [row for row in card["rows"] if _of_these_weights(row, run)]
    dropped = len(card["rows"]) - len(same)
    card["rows"] = [row | exported if row.get("weights_sha256") else row for row in same]
    if same:
        write_text(partial / "card.json", json.dumps(card, indent=1) + "\n")
    return (
        f"; rows of card.json left out, measured on other weights: {dropped} of {dropped + len(same)}"
        if dropped
        else ""
    )


def _of_these_weights(row: dict, run: Run) -> bool:
    """By the hash; a row without one (written by hand) by the average and the number of steps that
    it names."""
    if row.get("weights_sha256"):
        return row["weights_sha256"] == run.weights_sha256
    return row.get("ema", run.ema) == run.ema and steps_made_for(run) in (None, row["steps"])


def _origin(run: Run, partial: Path, **more) -> None:
    steps, time = steps_made_for(run), time_convention(table_steps(run.spec))
    values = Origin(
        run=run.name,
        method=run.method,
        teacher=run.teacher,
        data=run.data and run.data.elsewhere(),
        ema=run.ema,
        ema_half_life=run.ema_half_life,
        train_images=run.train_images,
        train_evals=run.train_evals,
        train_seconds=run.train_seconds,
        config_sha256=run.config_sha256,
        steps=steps,
        codec=run.spec.codec if isinstance(run.spec.codec, LatentSpec) else None,
        time=time
        if steps is None
        else f"{time}; made for {steps} steps of DDIM, timestep_spacing trailing",
        **more,
    )
    write_text(partial / ORIGIN, values.model_dump_json(indent=1, exclude_none=True) + "\n")


def _straight(run: Run, source: Path, partial: Path) -> str:
    """A published checkpoint: its own files, in subfolders, with the weights as they are in
    memory."""
    checkpoint = read_checkpoint(source)
    name = "transformer" if checkpoint.class_name == "DiTTransformer2DModel" else "unet"
    for file in ("model_index.json", ORIGIN, "README.md", f"{PIPELINE}.py"):
        if (source / file).is_file():
            shutil.copyfile(_inside(source / file, source), partial / file)
    (partial / "scheduler").mkdir()
    shutil.copyfile(
        _inside(checkpoint.scheduler_file, source), partial / "scheduler" / "scheduler_config.json"
    )
    if isinstance(run.model.codec, Latents):
        write_autoencoder(run.model.codec, partial / VAE)
    if checkpoint.class_name == OURS:
        (partial / name).mkdir()
        config = _inside(checkpoint.component / "config.json", source)
        shutil.copyfile(config, partial / name / "config.json")
        weights = chosen_weights(checkpoint)
        for file in weights.files():
            _inside(file, source)
        weights.write(partial / name / f"{STEM}.safetensors")
        write_text(
            partial / name / f"{MODULE}.py", module_source()
        )  # code is not fetched from the hub
        write_text(partial / f"{PIPELINE}.py", pipeline_source())
    else:
        run.model.network.inner.save_pretrained(partial / name)
    if not (partial / "README.md").exists():
        ours = checkpoint.class_name == OURS
        words = (
            readme(run, True, f"A {OURS}", checkpoint.origin.steps)
            if ours
            else readme_as_published(run, checkpoint)
        )
        write_text(partial / "README.md", words)
    return f"{checkpoint.class_name} as it came"


def _inside(file: Path, source: Path) -> Path:
    """`file`; raises UserError for a link that leads out of the checkpoint. Those of the hub's
    cache lead to its blobs/, beside snapshots/."""
    place, inside = file.resolve(), [source.resolve()]
    if source.resolve().parent.name == "snapshots":
        inside.append(source.resolve().parents[1] / "blobs")
    if not any(place.is_relative_to(folder) for folder in inside):
        raise UserError(f"{file} is a link out of {source}: put the file there")
    return file


def _diffusers_network(diffusers, run: Run, partial: Path) -> str:
    """A student that has a published teacher's architecture."""
    network, scheduler = run.spec.network, _scheduler(diffusers, run)
    run.model.network.inner.save_pretrained(partial / "unet")
    own = bool(network.labels) or isinstance(run.model.codec, Latents)
    pipeline = _pipeline(scheduler, own)
    _index(run, partial, pipeline, scheduler, ["diffusers", network.class_name], network.null_label)
    if own:
        write_text(partial / f"{PIPELINE}.py", pipeline_source())
    what = f"A {network.class_name}" + (f", distilled from {run.teacher}" if run.teacher else "")
    write_text(partial / "README.md", readme(run, own, what, steps_made_for(run)))
    _origin(run, partial, null_label=network.null_label)
    return network.class_name


def _pipeline(scheduler, own: bool) -> str | list[str]:
    """The pipeline's class in model_index.json: diffusers' own of that scheduler, or ours."""
    if own:
        return [PIPELINE, "FastSamplingPipeline"]
    return type(scheduler).__name__.replace("Scheduler", "Pipeline")


def _our_unet(diffusers, run: Run, partial: Path) -> str:
    spec, network = run.spec, run.model.network
    assert isinstance(network, UNet)
    labels, scheduler = network.num_classes, _scheduler(diffusers, run)
    reason = why_not_unet2d(spec)
    latent = isinstance(run.model.codec, Latents)
    pipeline = _pipeline(scheduler, own=bool(labels) or latent or reason is not None)
    channels, side = spec.shape[:2]
    if reason is None:
        theirs = diffusers.UNet2DModel(**unet2d_config(spec))
        theirs.load_state_dict(
            unet2d_state(spec, network.state_dict())
        )  # strict: every tensor has its place
        theirs.save_pretrained(partial / "unet")
        _index(run, partial, pipeline, scheduler, ["diffusers", "UNet2DModel"])
        _origin(run, partial, null_label=bool(labels))
    else:
        folder, n = partial / "unet", spec.network
        folder.mkdir()
        needs_conversion = converts(spec)
        config = {
            "_class_name": OURS,
            "_diffusers_version": diffusers.__version__,
            "sample_size": side,
        }
        config |= {
            "in_channels": channels,
            "out_channels": channels,
            "num_classes": labels,
        }
        config |= {
            key: getattr(n, key)
            for key in ("widths", "blocks", "attention", "head_width", "dropout", "patch")
        }
        config |= {"steps": table_steps(spec), "converts": needs_conversion}
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        state = {
            f"unet.{name}": tensor.detach().cpu().contiguous()
            for name, tensor in network.state_dict().items()
        }
        if needs_conversion:
            state["scales"] = conversion_table(run.model, table_steps(spec)).float()
        save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        write_text(folder / f"{MODULE}.py", module_source())
        _index(run, partial, pipeline, scheduler, [MODULE, OURS])
        _origin(run, partial, spec=spec)
    if isinstance(pipeline, list):
        write_text(partial / f"{PIPELINE}.py", pipeline_source())
    what = (
        "A UNet2DModel"
        if reason is None
        else f"A network of its own, in `unet/{MODULE}.py`, since {reason}"
    )
    write_text(
        partial / "README.md", readme(run, isinstance(pipeline, list), what, steps_made_for(run))
    )
    return "UNet2DModel, exactly" if reason is None else f"{OURS} with its own module ({reason})"
