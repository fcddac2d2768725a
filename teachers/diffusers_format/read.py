"""Published DDPM checkpoints in diffusers' format, from a folder or the Hugging Face hub, as
runs."""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from core.config import Strict, config_sha256, parse
from core.data import DataConfig
from core.errors import UserError
from core.files import read_text
from core.model import Model, ModelSpec, upgraded
from core.networks.diffusers import DiffusersConfig, diffusers_library
from core.runs import Format, Run
from teachers.diffusers_format.schedules import Schedule, read_schedule

ORIGIN = "fast_sampling.json"
OURS = "FastSamplingUNet"  # the class in folders that teachers/diffusers_format/write.py writes for networks diffusers does not have
NETWORKS = ("UNet2DModel", "DiTTransformer2DModel", OURS)
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
LATENT = ("vae", "vqvae", "movq", "vqgan")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Origin(Strict):
    """fast_sampling.json beside model_index.json: what diffusers' files do not say. Exports write
    it, anyone may.

    null_label: whether the last class of a UNet2DModel is the null label; spec: of a network that
    diffusers does not have; steps: the one number of steps it was made for, if there is one; the
    rest as in a Run. time: how timesteps and our t go together, for people.
    """

    run: str | None = None
    method: str = "pretrained"
    teacher: str | None = None
    data: DataConfig | None = None
    ema: str = "as published"
    null_label: bool = False
    spec: ModelSpec | None = None
    train_images: int | None = None
    train_evals: float | None = None
    train_seconds: float | None = None
    config_sha256: str | None = None
    steps: int | None = None
    time: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The configs of a diffusers folder, read and found to fit; weights not yet."""

    folder: Path
    component: Path  # the folder of the network
    class_name: str
    scheduler_file: Path
    schedule: Schedule
    spec: ModelSpec
    origin: Origin

    def weights_file(self) -> Path | None:
        return next(
            (self.component / name for name in WEIGHTS if (self.component / name).is_file()), None
        )


def is_folder(path: Path) -> bool:
    """Whether the folder looks like a diffusers checkpoint, complete or not."""
    return any(
        (path / name).is_file()
        for name in (
            "model_index.json",
            "config.json",
            "unet/config.json",
            "transformer/config.json",
        )
    )


def is_hub_id(path: Path) -> bool:
    """Whether it reads owner/name and nothing local does: neither that folder nor one called
    owner."""
    return (
        bool(HUB_ID.fullmatch(path.as_posix())) and not path.exists() and not path.parent.exists()
    )


def recognise(path: Path) -> bool:
    return is_folder(path) or is_hub_id(path)


def _json(file: Path, what: str) -> dict:
    if not file.is_file():
        raise UserError(f"{file} is missing: {what}")
    try:
        values = json.loads(read_text(file))
    except ValueError as error:
        raise UserError(
            f"{file} is not valid JSON ({error}): fetch the checkpoint again"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no JSON object: fetch the checkpoint again")
    return values


def _component(folder: Path, name: str) -> Path:
    """Its subfolder, or as in the first checkpoints the folder itself."""
    return folder / name if (folder / name).is_dir() else folder


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads and checks the configs of a diffusers folder.

    Raises:
        UserError: a file that is missing or damaged, or the first value that does not fit, with its
            file and key.
    """
    index_file = folder / "model_index.json"
    index = _json(
        index_file,
        "a diffusers checkpoint has it beside its unet and scheduler folders; save the whole pipeline",
    )
    parts = {
        key: value[1]
        for key, value in index.items()
        if isinstance(value, list) and len(value) == 2 and key[0] != "_" and value[1]
    }
    for key, value in parts.items():
        if key in LATENT:
            reason = "a latent pipeline (its network makes no images but what this decodes); only pixel-space checkpoints are read"
            raise UserError(f"{index_file}: {key} = {value!r}: {reason}")
        if "text" in key or "token" in key or "image_encoder" in key:
            raise UserError(
                f"{index_file}: {key} = {value!r}: conditioning on text or images is not read, only class labels"
            )
        if key not in ("unet", "transformer", "scheduler"):
            raise UserError(
                f"{index_file}: {key} = {value!r}: only pipelines of a network and a scheduler are read"
            )
    network = "transformer" if "transformer" in parts else "unet"
    if network not in parts:
        raise UserError(
            f"{index_file}: key 'unet' is missing: only pipelines of a network and a scheduler are read"
        )
    origin_file = folder / ORIGIN
    origin = Origin()
    if origin_file.is_file():
        said = _json(origin_file, "")
        if isinstance(said.get("spec"), dict):
            said["spec"] = upgraded(said["spec"])
        origin = parse(Origin, said, str(origin_file))
    component = _component(folder, network)
    class_name = parts[network]
    config_file = component / "config.json"
    config = _json(config_file, "the network's config; fetch the checkpoint again")
    class_name = config.get("_class_name", class_name)
    if class_name not in NETWORKS:
        raise UserError(
            f"{config_file}: _class_name = {class_name!r}: only {', '.join(NETWORKS[:2])} are read"
        )
    scheduler_file = _component(folder, "scheduler") / "scheduler_config.json"
    wanted = "it says the betas and the prediction; take it from where the checkpoint was published"
    schedule = read_schedule(_json(scheduler_file, wanted), scheduler_file)
    if class_name == OURS:
        if origin.spec is None:
            raise UserError(
                f"{origin_file}: key 'spec' is missing: a {OURS} is described there; export the run again"
            )
        spec = origin.spec
    else:
        spec = _spec(class_name, config, config_file, schedule, origin)
    return Checkpoint(folder, component, class_name, scheduler_file, schedule, spec, origin)


def _spec(
    class_name: str, config: dict, file: Path, schedule: Schedule, origin: Origin
) -> ModelSpec:
    import inspect

    parameters = inspect.signature(
        getattr(diffusers_library(str(file)), class_name).__init__
    ).parameters
    defaults = {
        key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty
    }
    c = defaults | {key: value for key, value in config.items() if key in defaults}

    def refuse(key: str, reason: str) -> UserError:
        return UserError(f"{file}: {key} = {c[key]!r}: {reason}")

    channels, size = c["in_channels"], c["sample_size"]
    if not isinstance(channels, int):
        raise refuse(
            "in_channels", "must be the number of the images' channels; fetch the checkpoint again"
        )
    outputs = channels if c["out_channels"] is None else c["out_channels"]
    if outputs == 2 * channels:
        raise refuse(
            "out_channels",
            f"twice in_channels = {channels}, a learned variance that would be ignored; take one of fixed variance",
        )
    if outputs != channels:
        raise refuse("out_channels", f"in_channels is {channels}; a denoiser has as many out as in")
    if isinstance(size, (list, tuple)) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int):
        raise refuse(
            "sample_size",
            "must be one number, the side of square images; write it if the checkpoint's card says it",
        )
    halvings = len(c.get("down_block_types", ())) - 1
    multiple = c["patch_size"] if "patch_size" in c else 2**halvings
    if size % multiple:
        raise refuse(
            "sample_size",
            f"must be a multiple of {multiple} for this network; the card may say what it was trained on",
        )
    if c.get("time_embedding_type", "positional") != "positional":
        raise refuse(
            "time_embedding_type",
            "only positional embeddings know the times between timesteps, which students need",
        )
    if c.get("class_embed_type") is not None:
        raise refuse("class_embed_type", "only plain class labels (num_class_embeds) are read")
    network = DiffusersConfig(
        class_name=class_name,
        config=c | {"sample_size": size},
        steps=schedule.steps,
        null_label=origin.null_label,
    )
    return ModelSpec(
        network=network,
        path=schedule.path,
        prediction=schedule.prediction,
        discrete_steps=schedule.steps,
        channels=channels,
        side=size,
        num_classes=network.labels,
    )


def fetch(hub_id: str) -> Path:
    """The hub's configs and then, if they fit, its weights, in the hub's own cache; returns the
    folder of that revision.

    Raises:
        UserError: diffusers is not installed, the hub cannot be reached or does not have it, or it
            does not fit.
    """
    diffusers_library(f"{hub_id} is no folder here, and to fetch it from the Hugging Face hub")
    from huggingface_hub import snapshot_download

    def download(*patterns: str) -> Path:
        try:
            return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
        except (
            Exception
        ) as error:  # whatever went wrong, network, name or permission, the remedies are these
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{hub_id} is no run or folder here, and could not be fetched from the Hugging Face hub ({reason}): check "
                "the name and the connection, or fetch it elsewhere (hf download) and give its folder"
            ) from error

    folder = download("*.json", "README.md")
    checkpoint = read_checkpoint(folder)  # before its weights, which may be gigabytes
    prefix = checkpoint.component.relative_to(folder).as_posix()
    for name in WEIGHTS:
        if checkpoint.weights_file() is None:
            folder = download(name if prefix == "." else f"{prefix}/{name}")
    return folder


@contextmanager
def _quiet():
    """diffusers logs what is said better in the UserError."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _inner(checkpoint: Checkpoint, file: Path) -> nn.Module:
    """The diffusers model with exactly its weights."""
    cls = getattr(diffusers_library(str(file)), checkpoint.class_name)
    options: dict[str, Any] = {
        "local_files_only": True,
        "low_cpu_mem_usage": False,
        "output_loading_info": True,
    }
    options |= {
        "use_safetensors": file.suffix == ".safetensors",
        "ignore_mismatched_sizes": True,
    }  # they are named below
    try:
        with _quiet():
            inner, info = cls.from_pretrained(str(checkpoint.component), **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{file} could not be read as a {checkpoint.class_name} ({reason}): fetch the checkpoint again"
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            name = min(key[0] if isinstance(key, (list, tuple)) else key for key in info[kind])
            config = checkpoint.component / "config.json"
            raise UserError(
                f"{file} does not fit {config}: {kind.split('_')[0]} tensor '{name}'; fetch the checkpoint again"
            )
    return inner.float()


def _load_ours(model: Model, file: Path) -> None:
    """Loads an exported FastSamplingUNet's weights into our own U-Net.

    Raises:
        UserError: a damaged file, or another architecture.
    """
    try:
        state = {
            name.removeprefix("unet."): tensor
            for name, tensor in load_file(file).items()
            if name != "scales"
        }
        model.network.load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file} is damaged or does not fit the spec beside it ({reason}): export the run again"
        ) from error


def _other_weights(checkpoint: Checkpoint) -> str:
    """What to do where the weights do not have their plain name: a variant such as fp16, or several
    shards."""
    stem = WEIGHTS[0].split(".")[0]
    found = sorted(file.name for file in checkpoint.component.glob(f"{stem}*") if file.is_file())
    if not found:
        return "fetch the checkpoint again"
    variant = found[0].removeprefix(f"{stem}.").split(".")[0]
    how = "" if "-of-" in found[0] or "index" in found[0] else f', variant="{variant}"'
    return (
        f"there is {found[0]}; put in place of that folder what diffusers saves with "
        f'{checkpoint.class_name}.from_pretrained("{checkpoint.component}"{how}).save_pretrained(FOLDER, max_shard_size="100GB")'
    )


def load_checkpoint(
    checkpoint: Checkpoint, device: torch.device | str = "cpu"
) -> tuple[Model, Path]:
    """The model on `device`, frozen, and its weights file.

    Raises:
        UserError: no weights file, or one that is damaged or of another architecture.
    """
    file = checkpoint.weights_file()
    if file is None:
        raise UserError(
            f"{checkpoint.component / WEIGHTS[0]} is missing (nor is there a {WEIGHTS[1]}): {_other_weights(checkpoint)}"
        )
    model = checkpoint.spec.build()
    if checkpoint.class_name == OURS:
        _load_ours(model, file)
    else:
        model.network.adopt(_inner(checkpoint, file))
    return model.to(device).eval().requires_grad_(False), file


def published_folder(run: Run) -> Path | None:
    """The diffusers folder (in the hub's cache, for a hub id) that a run was loaded from; None for
    runs of ours."""
    component = run.weights_file.parent
    return next(
        (
            folder
            for folder in (component, component.parent)
            if (folder / "model_index.json").is_file()
        ),
        None,
    )


_noted: set[Path] = set()


def _note(path: Path, schedule: Schedule) -> None:
    """Says once how the checkpoint was meant to be sampled: nothing of it is applied unless asked
    for."""
    if path not in _noted:
        _noted.add(path)
        rest = f"; without equal here: {'; '.join(schedule.differs)}" if schedule.differs else ""
        rest += f"; left over: {'; '.join(schedule.left_over)}" if schedule.left_over else ""
        print(f"{path}: its own scheduler samples as {schedule.sampling}{rest}", file=sys.stderr)


def load_pretrained(path: Path, weights: str = "ema", device: torch.device | str = "cpu") -> Run:
    """The Run of a diffusers folder or hub id; its weights are one set, "as published".

    Raises:
        UserError: see fetch, read_checkpoint and load_checkpoint; or raw weights are asked for.
    """
    if weights != "ema":
        raise UserError(f"{path} has one set of weights, as published: leave out weights={weights}")
    folder = path if path.is_dir() else fetch(path.as_posix())
    checkpoint = read_checkpoint(folder)
    model, file = load_checkpoint(checkpoint, device)
    if checkpoint.class_name != OURS:
        _note(path, checkpoint.schedule)
    o = checkpoint.origin
    return Run(
        folder=path,
        name=o.run or path.resolve().name,
        method=o.method,
        teacher=o.teacher,
        model=model,
        data=o.data,
        ema=o.ema,
        config_sha256=o.config_sha256 or config_sha256(checkpoint.spec),
        weights_file=file,
        train_images=o.train_images,
        train_evals=o.train_evals,
        train_seconds=o.train_seconds,
    )


PRETRAINED = Format(recognise, load_pretrained)
