"""The configs of a published checkpoint in diffusers' format: read, and found to fit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from core.codec import LatentSpec
from core.config import Strict, parse
from core.data import DataConfig
from core.errors import UserError
from core.files import read_text
from core.model import ModelSpec, upgraded
from core.networks.diffusers import DiffusersConfig, diffusers_library
from teachers.diffusers_format.schedules import Schedule, read_schedule
from teachers.diffusers_format.weights import find_weights

ORIGIN = "fast_sampling.json"
OURS = "FastSamplingUNet"  # the class in folders that teachers/diffusers_format/write.py writes for networks diffusers does not have
NETWORKS = ("UNet2DModel", "DiTTransformer2DModel", OURS)
VAE = "vae"
LATENT = (VAE, "vqvae", "movq", "vqgan")


class Origin(Strict):
    """fast_sampling.json beside model_index.json: what diffusers' files do not say. Exports write
    it, anyone may.

    null_label: whether the last class of a UNet2DModel is the null label; spec: of a network that
    diffusers does not have; codec: of the latents that the network sees, whose autoencoder is in
    vae/; steps: the one number of steps it was made for, if there is one; the
    rest as in a Run. time: how timesteps and our t go together, for people."""

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
    ema_half_life: float | None = None
    steps: int | None = None
    time: str | None = None
    codec: LatentSpec | None = None


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


def _origin(file: Path) -> Origin:
    if not file.is_file():
        return Origin()
    said = _json(file, "")
    if isinstance(said.get("spec"), dict):
        said["spec"] = upgraded(said["spec"])
    return parse(Origin, said, str(file))


def _component(folder: Path, name: str) -> Path:
    """Its subfolder, the averaged one if there is no other, or as in the first checkpoints the
    folder itself."""
    places = [place for place in (folder / name, folder / f"{name}_ema") if place.is_dir()]
    return next((place for place in places if find_weights(place)), (places or [folder])[0])


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads and checks the configs of a diffusers folder.

    Raises: UserError: a file that is missing or damaged, or the first value that does not fit, with
        its file and key.
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
    origin = _origin(folder / ORIGIN)
    for key, value in parts.items():
        if key == VAE and origin.codec is not None:
            continue
        if key in LATENT:
            reason = "a latent pipeline (its network makes no images but what this decodes); only those that this repository exported are read, and pixel-space ones"
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
                f"{folder / ORIGIN}: key 'spec' is missing: a {OURS} is described there; export the run again"
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
    codec = origin.codec
    return ModelSpec(
        network=network,
        path=schedule.path,
        prediction=schedule.prediction,
        discrete_steps=schedule.steps,
        channels=codec.images if codec else channels,
        side=size * codec.factor if codec else size,
        num_classes=network.labels,
        codec=codec or "pixels",
    )
