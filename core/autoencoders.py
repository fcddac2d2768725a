"""Autoencoders on disk: in the format of diffusers' AutoencoderKL, which a run in latents keeps in
its folder, so that it can be moved; and the codec that each one makes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core.codec import Codec, Latents, LatentSpec
from core.config import parse
from core.errors import UserError
from core.files import read_json, whole_folder, write_text
from core.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from core.tensors import load_tensors, tensors_sha256, write_tensors

FOLDER = "autoencoder"  # in the folder of a run in latents
CLASS = "AutoencoderKL"
MOST_CHANNELS = 4096
CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# diffusers' keys, by ours, with the values that diffusers takes where they are missing
KEYS = {
    "latent": ("latent_channels", 4),
    "widths": ("block_out_channels", [64]),
    "blocks": ("layers_per_block", 1),
    "groups": ("norm_num_groups", 32),
    "attention": ("mid_block_add_attention", True),
    "quant_conv": ("use_quant_conv", True),
    "post_quant_conv": ("use_post_quant_conv", True),
}
# What ours has no other value of; `force_upcast` and `sample_size` change nothing here
FIXED = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
# Names of the attention's parameters in files of diffusers' first versions
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def diffusers_config(network: AutoencoderKL, spec: LatentSpec) -> dict:
    """The config.json of an autoencoder."""
    config, channels = network.config, network.channels
    levels = len(config.widths)
    values: dict[str, Any] = {
        "_class_name": CLASS,
        "in_channels": channels,
        "out_channels": channels,
    }
    values |= {name: [block] * levels for name, block in BLOCKS.items()}
    values |= {theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()}
    return values | FIXED | {"scaling_factor": spec.scale, "shift_factor": spec.shift or None}


def _network(values: dict, file: Path) -> tuple[AutoencoderKLConfig, int]:
    """Our config and the images' channels, of diffusers' config.

    Raises:
        UserError: the first key that ours has no equal of.
    """
    if values.get("_class_name") != CLASS:
        raise UserError(f"{file}: _class_name is {values.get('_class_name')!r}, and no {CLASS}")
    ours = {name: values.get(theirs, default) for name, (theirs, default) in KEYS.items()}
    config, channels = parse(AutoencoderKLConfig, ours, str(file)), values.get("in_channels", 3)
    if type(channels) is not int or not 1 <= channels <= MOST_CHANNELS:
        raise UserError(f"{file}: in_channels = {channels!r}: a number from 1 to {MOST_CHANNELS}")
    levels = len(config.widths)
    wanted = FIXED | {name: [block] * levels for name, block in BLOCKS.items()}
    wanted["out_channels"] = channels
    for key, value in wanted.items():
        given = values.get(key, value)
        if (list(given) if isinstance(given, (list, tuple)) else given) != value:
            raise UserError(f"{file}: {key} = {given!r} is not read, only {value!r}")
    return config, channels


def _codec(network: AutoencoderKL, name: str, scale: float, shift: float, source: str) -> Latents:
    """The codec of a network, known by the hash of its config and weights."""
    config, channels = network.config, network.channels
    state = {k: v.float() for k, v in network.state_dict().items() if k != "scale"}
    about = [channels, *(getattr(config, key) for key in KEYS), scale, shift]
    digest = hashlib.sha256((json.dumps(about) + tensors_sha256(state)).encode()).hexdigest()
    values = {
        "autoencoder": name,
        "sha256": digest,
        "images": channels,
        "channels": config.latent,
        "factor": config.factor,
        "scale": scale,
        "shift": shift,
    }
    return Latents(parse(LatentSpec, values, source), network)


def read_autoencoder(folder: Path, name: str | None = None) -> Latents:
    """The codec of a folder in diffusers' format. name: what it is called; None: as its folder.

    Raises:
        UserError: a file that is missing or damaged, or a config that ours has no equal of.
    """
    file, mend = folder / CONFIG, "copy the autoencoder again from where it is whole"
    if not file.is_file():
        raise UserError(f"{file} is missing: {mend}")
    values = read_json(file, mend)
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no config: {mend}")
    config, channels = _network(values, file)
    try:
        scale, shift = float(values.get("scaling_factor", 0.18215)), values.get("shift_factor")
        shift = float(shift or 0.0)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{file}: scaling_factor and shift_factor are no numbers: {mend}"
        ) from error
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(f"{folder / WEIGHTS[0]} is missing: {mend}")
    state = {_today(key): v for key, v in load_tensors(weights, f"is damaged ({mend})").items()}
    network = AutoencoderKL(config, channels)
    own = {key: tensor for key, tensor in network.state_dict().items() if key != "scale"}
    for key in sorted(own.keys() | state.keys()):
        if key in own and key in state and (own[key].ndim, state[key].ndim) == (2, 4):
            state[key] = state[key].flatten(1)  # 1x1 convolutions in the first versions
        if key not in own or key not in state or own[key].shape != state[key].shape:
            raise UserError(f"{weights}: tensor '{key}' does not fit its config.json: {mend}")
    network.load_state_dict(
        {key: tensor.float() for key, tensor in state.items()} | {"scale": torch.tensor(scale)}
    )
    return _codec(network, name or folder.resolve().name, scale, shift, str(file))


def _today(key: str) -> str:
    if ".attentions." not in key:
        return key
    parts = key.split(".")
    return ".".join(OLD.get(part, part) for part in parts)


def write_autoencoder(codec: Latents, folder: Path) -> None:
    """The codec's autoencoder in diffusers' format: a whole folder, or none."""
    network = codec.autoencoder
    state = {k: v.detach().cpu() for k, v in network.state_dict().items() if k != "scale"}
    values = diffusers_config(network, codec.spec)
    with whole_folder(folder) as partial:
        write_text(partial / CONFIG, json.dumps(values, indent=2) + "\n")
        write_tensors(partial / WEIGHTS[0], state, {"format": "pt"})


def keep_autoencoder(codec: Codec, run: Path) -> None:
    """Puts the autoencoder of a run in latents into its folder, where it is not there yet; other
    codecs have nothing to keep.

    Raises:
        UserError: another one is there, or a damaged one.
    """
    if not isinstance(codec, Latents):
        return
    if not (run / FOLDER).exists():
        write_autoencoder(codec, run / FOLDER)
    elif (found := read_autoencoder(run / FOLDER).sha256) != codec.sha256:
        raise UserError(
            f"{run} was begun with another autoencoder (that in {run / FOLDER} has the sha256 "
            f"{found[:12]}, and the one given {codec.sha256[:12]}): bring that back to go on, or "
            "give run=ANOTHER_FOLDER to train with this one"
        )


def kept_codec(spec: LatentSpec, folder: Path) -> Latents:
    """The codec of a model's spec, from the folder that the model keeps it in.

    Raises:
        UserError: it is missing or damaged, or no longer the one that the run was trained with.
    """
    codec = read_autoencoder(folder, spec.autoencoder)
    if codec.spec != spec:
        raise UserError(
            f"{folder} is not the autoencoder that this run was trained with (sha256 "
            f"{codec.sha256[:12]}, and {spec.sha256[:12]} then): copy it again from where it is "
            "whole"
        )
    return codec


def copy_autoencoder(run: Path, to: Path) -> None:
    """What a run's folder holds of its codec, to another folder; nothing where it holds none."""
    if (run / FOLDER).is_dir():
        shutil.copytree(run / FOLDER, to / FOLDER)


def open_autoencoder(folder: str, load: Callable) -> Latents:
    """The codec that `data.codec` names: the folder of a run that trained an autoencoder, of an
    AutoencoderKL in diffusers' format, or of a pipeline that has one in vae/.

    Args:
        load: finds a trained model by its folder (core.runs.Load).

    Raises:
        UserError: there is no autoencoder, or it is not finished.
    """
    place = Path(folder).expanduser()
    for inner in (place / "vae", place):
        if (inner / CONFIG).is_file():
            return read_autoencoder(inner, place.resolve().name)
    if not (place / "config.yaml").is_file():
        raise UserError(
            f"data.codec={folder} is no autoencoder: give the folder of a run that trained one, or "
            "of an AutoencoderKL in diffusers' format (with its config.json)"
        )
    run = load(place)
    network = run.model.network
    if not isinstance(network, AutoencoderKL):
        raise UserError(
            f"data.codec={folder} is a run of the method '{run.method}', which is no autoencoder"
            + (f": its own is in {place / FOLDER}" if (place / FOLDER).is_dir() else "")
        )
    scale = float(network.scale)
    if not scale > 0:
        raise UserError(
            f"data.codec={folder} is not trained to its end, where its latents are measured: go on "
            "with its training"
        )
    return _codec(network, run.name, scale, 0.0, folder)
