"""Trained models with their origin, loaded from the folders of runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from core.autoencoders import FOLDER, kept_codec
from core.codec import LatentSpec
from core.data import DataConfig
from core.errors import UserError, nearest
from core.model import Model, ModelSpec
from core.tensors import tensors_sha256
from core.training.checkpoints import check_file, read_newest
from core.training.origin import RunOrigin, read_origin, read_price
from core.training.snapshots import Synthesis, synthesise
from core.weights import load_weights, read_spec

POST_HOC = re.compile(r"half-life ([0-9]+(?:\.[0-9]+)?)")  # weights that are put together


@dataclass(frozen=True)
class Run:
    """A trained model with its origin.

    ema: which weights these are: "raw", "average", "post-hoc half-life N", what another format
    says, or the configured half-life, where a run of an earlier version does not know the true one;
    ema_half_life: images that make up half of the average. weights_sha256: of the file that was
    read, or of its shards' hashes, since a training that goes on replaces the file. train_*: the
    price and the seed of training, None like `data` where a model that was trained elsewhere does
    not say.
    """

    folder: Path
    name: str
    method: str
    teacher: str | None
    model: Model
    data: DataConfig | None
    ema: str
    config_sha256: str
    weights_file: Path
    weights_sha256: str
    train_images: int | None
    train_evals: float | None
    train_seconds: float | None
    train_seed: int | None = None
    ema_half_life: float | None = None
    critic_features: tuple[str, ...] = ()  # what critics saw that it was trained by

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @property
    def weights(self) -> str:
        """Which weights these are, in words."""
        return weights_in_words(self.ema, self.ema_half_life)


def weights_in_words(ema: str, half_life: float | None) -> str:
    """An average by its half-life; one whose configured half-life alone is known is marked."""
    if half_life is not None:
        return f"half-life {half_life:.0f} images"
    return f"{ema} (cap)" if ema.startswith("half-life") else ema


def check_weights(weights: str) -> str:
    """Which weights of a run are meant, as they were given. Raises UserError for others."""
    if weights not in ("ema", "raw") and not POST_HOC.fullmatch(weights):
        raise UserError(f"weights = '{weights}': ema, raw, or half-life N of N images")
    return weights


def weights_meant(ema: str) -> str:
    """The weights to load by what `Run.ema` says of them."""
    return "raw" if ema == "raw" else ema.removeprefix("post-hoc ") if _is_post_hoc(ema) else "ema"


def _is_post_hoc(ema: str) -> bool:
    return ema.startswith("post-hoc ")


class Format(NamedTuple):
    """Another format of models. recognise: whether a path or name is one; load: (path, weights,
    device) -> Run, raising UserError for one that does not fit."""

    recognise: Callable[[Path], bool]
    load: Callable[[Path, str, torch.device | str], Run]


class NotARun(UserError):
    """There is nothing at that place that could be loaded."""


class Load(Protocol):
    """How a trained model is found by its folder or name: `lab.load` for everyone but tests. It is
    handed down, so that the rooms below know every format without importing any."""

    def __call__(
        self,
        folder: str | Path,
        weights: str = "ema",
        device: torch.device | str = "cpu",
        steps: int | None = None,
    ) -> Run: ...


def load_run(
    folder: str | Path,
    weights: str = "ema",
    device: torch.device | str = "cpu",
    steps: int | None = None,
    formats: Iterable[Format] = (),
) -> Run:
    """The newest checkpoint of a run folder, or whatever else one of `formats` recognises.

    Args:
        weights: "ema", "raw", or "half-life 3000": the average with that half-life in images,
            which is put together from the run's snapshots (core/training/snapshots.py).
        steps: how many steps it will be sampled in, for runs that keep a model per number of steps.

    Raises:
        NotARun: there is no model. UserError: it has no checkpoint yet, or it is damaged.
    """
    written_as_path = str(folder).startswith(("./", "../", "/", "~"))  # Path drops the ./
    folder = Path(folder)
    check_weights(weights)
    if not (folder / "config.yaml").is_file():
        for other in formats:
            if (folder.exists() or not written_as_path) and other.recognise(folder):
                return other.load(folder, weights, device)
        known = (
            [p.parent.name for p in folder.parent.glob("*/config.yaml")]
            if folder.parent.is_dir()
            else []
        )
        hint = nearest(folder.name, known) if known else ""
        raise NotARun(
            f"{folder} is not a run: it has no config.yaml{hint}; train it first (python -m scripts.train --help)"
        )
    origin = read_origin(folder)
    run = read_newest(
        folder, lambda found: _read_run(folder, origin, found, weights, device), steps
    )
    if run is None:
        raise UserError(
            f"{folder} has no checkpoint yet: its training has not got that far, run it again"
        )
    return run


def _read_run(
    folder: Path, origin: RunOrigin, checkpoint: Path, weights: str, device: torch.device | str
) -> Run:
    price = read_price(checkpoint)
    half_life = price.half_life if weights == "ema" else None
    configured = f"half-life {origin.ema.half_life:g} images"
    average = configured if half_life is None else "average"
    file = checkpoint / f"{'ema' if POST_HOC.fullmatch(weights) else weights}.safetensors"
    digest = check_file(file)
    spec = read_spec(file)
    codec = kept_codec(spec.codec, folder / FOLDER) if isinstance(spec.codec, LatentSpec) else None
    model = spec.build(codec)
    if wanted := POST_HOC.fullmatch(weights):
        made = post_hoc(folder, checkpoint, float(wanted[1]))
        model.network.load_state_dict(made.state)
        file, half_life, average = made.source, made.half_life, f"post-hoc {weights}"
        digest = tensors_sha256(made.state)
    else:
        load_weights(model.network, file)
    model = model.to(device).eval().requires_grad_(False)
    return Run(
        folder=folder,
        name=folder.name,
        method=origin.method.name,
        teacher=price.teacher,
        model=model,
        data=origin.data,
        ema="raw" if weights == "raw" else average,
        config_sha256=price.config_sha256,
        weights_file=file,
        weights_sha256=digest,
        train_images=price.images,
        train_evals=price.evals,
        train_seconds=price.seconds,
        train_seed=origin.train.seed,
        ema_half_life=half_life,
        critic_features=price.critic_features,
    )


def post_hoc(folder: Path, checkpoint: Path, half_life: float) -> Synthesis:
    """The average of a run with that half-life in images, at its newest checkpoint.

    Raises:
        UserError: see core.training.snapshots.synthesise; or the run keeps a network for each
            number of steps, of which there are no snapshots.
    """
    if (folder / "for-steps").is_dir():
        raise UserError(
            f"{folder} keeps a network for each number of steps, whose averages are not put together "
            "after training: leave out the half-life"
        )
    return synthesise(folder, read_price(checkpoint).images, half_life)
