"""Published DDPM checkpoints in diffusers' format, from a folder or the Hugging Face hub, as
runs."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.autoencoders import kept_codec
from core.codec import LatentSpec
from core.config import config_sha256
from core.errors import UserError, reason
from core.model import Model
from core.networks.diffusers import diffusers_library
from core.runs import Format, Run
from teachers.diffusers_format.checkpoint import OURS, VAE, Checkpoint, read_checkpoint
from teachers.diffusers_format.schedules import Schedule
from teachers.diffusers_format.weights import AGAIN, STEM, Weights, find_weights

HERE = ("runs", "results", "teachers", "configs", "data")  # folders of this repository
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


_noted: set[Path] = set()


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
    owner, nor is owner the name of a folder that this repository has or makes."""
    named = bool(HUB_ID.fullmatch(path.as_posix())) and path.parts[0] not in HERE
    return named and not path.exists() and not path.parent.exists()


def recognise(path: Path) -> bool:
    return is_folder(path) or is_hub_id(path)


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
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{hub_id} is no run or folder here, and could not be fetched from the Hugging Face hub ({first}): check "
                "the name and the connection, or fetch it elsewhere (hf download) and give its folder"
            ) from error

    folder = download("*.json", "README.md")
    checkpoint = read_checkpoint(folder)  # before its weights, which may be gigabytes
    prefix = checkpoint.component.relative_to(folder).as_posix()
    for name in (
        "{}.safetensors",
        "{}-*.safetensors",
        "{}.bin",
        "{}-*.bin",
        "{}*.safetensors",
        "{}*.bin",
    ):
        if not any(
            all(file.is_file() for file in weights.files())
            for weights in find_weights(checkpoint.component)
        ):
            pattern = name.format(STEM)
            folder = download(pattern if prefix == "." else f"{prefix}/{pattern}")
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


def _inner(checkpoint: Checkpoint, weights: Weights) -> nn.Module:
    """The diffusers model with exactly its weights. diffusers knows the old names of tensors, and
    is handed a plain safetensors file, whatever the published ones are."""
    cls = getattr(diffusers_library(str(weights.file)), checkpoint.class_name)
    options: dict[str, Any] = {
        "local_files_only": True,
        "low_cpu_mem_usage": False,
        "output_loading_info": True,
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # they are named below
    }
    config = checkpoint.component / "config.json"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(config, Path(folder) / config.name)
        weights.write(Path(folder) / f"{STEM}.safetensors")
        try:
            with _quiet():
                inner, info = cls.from_pretrained(folder, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{weights.file} could not be read as a {checkpoint.class_name} ({reason(error)}): {AGAIN}"
            ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            name = min(key[0] if isinstance(key, (list, tuple)) else key for key in info[kind])
            raise UserError(
                f"{weights.file} does not fit {config}: {kind.split('_')[0]} tensor '{name}'; {AGAIN}"
            )
    return inner.float()


def _load_ours(model: Model, weights: Weights) -> None:
    """Loads an exported FastSamplingUNet's weights into our own U-Net.

    Raises:
        UserError: a damaged file, or another architecture.
    """
    state = {
        name.removeprefix("unet."): tensor
        for name, tensor in weights.tensors().items()
        if name != "scales"
    }
    try:
        model.network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{weights.file} does not fit the spec beside it ({reason(error, 200)}): export the run again"
        ) from error


def chosen_weights(checkpoint: Checkpoint) -> Weights:
    """The weights that are read; says once which these are, where there are others.

    Raises:
        UserError: there are none.
    """
    component = checkpoint.component
    if not (found := find_weights(component)):
        raise UserError(f"{component / STEM}.safetensors is missing (nor is there a .bin): {AGAIN}")
    others = [weights.file for weights in found[1:]]
    averaged = component.with_name(f"{component.name}_ema")
    others += [w.file for w in find_weights(averaged)] if component != checkpoint.folder else []
    if others and component not in _noted:
        _noted.add(component)
        names = ", ".join(str(file.relative_to(checkpoint.folder)) for file in others)
        print(f"{found[0].file} was taken, not {names}", file=sys.stderr)
    return found[0]


def load_checkpoint(
    checkpoint: Checkpoint, device: torch.device | str = "cpu"
) -> tuple[Model, Weights]:
    """The model on `device`, frozen, and its weights.

    Raises:
        UserError: no weights, or some that are damaged or of another architecture.
    """
    weights = chosen_weights(checkpoint)
    latents, vae = checkpoint.spec.codec, checkpoint.folder / VAE
    codec = kept_codec(latents, vae) if isinstance(latents, LatentSpec) else None
    model = checkpoint.spec.build(codec)
    if checkpoint.class_name == OURS:
        _load_ours(model, weights)
    else:
        model.network.adopt(_inner(checkpoint, weights))
    return model.to(device).eval().requires_grad_(False), weights


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
    model, chosen = load_checkpoint(checkpoint, device)
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
        weights_file=chosen.files()[0],
        weights_sha256=chosen.sha256(),
        train_images=o.train_images,
        train_evals=o.train_evals,
        train_seconds=o.train_seconds,
        ema_half_life=o.ema_half_life,
    )


PRETRAINED = Format(recognise, load_pretrained)
