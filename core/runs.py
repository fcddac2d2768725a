"""Trained models with their origin, loaded from the folders of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from core.autoencoders import FOLDER, kept_codec
from core.codec import LatentSpec
from core.data import DataConfig
from core.errors import UserError, nearest
from core.files import sha256_of
from core.model import Model, ModelSpec
from core.training.checkpoints import check_file, latest_checkpoint
from core.training.origin import RunOrigin, read_origin, read_price
from core.weights import load_weights, read_spec


@dataclass(frozen=True)
class Run:
    """A trained model with its origin.

    ema: which weights these are: "raw", "average", what another format says, or the configured
    half-life, where a run of an earlier version does not know the true one; ema_half_life: images
    that make up half of the average. train_*: the price and the seed of training, None like `data`
    where a model that was trained elsewhere does not say.
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
    train_images: int | None
    train_evals: float | None
    train_seconds: float | None
    train_seed: int | None = None
    ema_half_life: float | None = None
    more_weights: tuple[Path, ...] = ()  # the other files, where they are in shards
    critic_features: tuple[str, ...] = ()  # what critics saw that it was trained by

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @property
    def weights(self) -> str:
        """Which weights these are, in words."""
        return weights_in_words(self.ema, self.ema_half_life)

    @cached_property
    def weights_sha256(self) -> str:
        files = (self.weights_file, *self.more_weights)
        hashes = [sha256_of(file) for file in files]
        return hashes[0] if len(files) == 1 else sha256("".join(hashes).encode()).hexdigest()


def weights_in_words(ema: str, half_life: float | None) -> str:
    """An average by its half-life; one whose configured half-life alone is known is marked."""
    if half_life is not None:
        return f"half-life {half_life:.0f} images"
    return f"{ema} (cap)" if ema.startswith("half-life") else ema


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
        weights: "ema" or "raw".
        steps: how many steps it will be sampled in, for runs that keep a model per number of steps.

    Raises:
        NotARun: there is no model. UserError: it has no checkpoint yet, or it is damaged.
    """
    written_as_path = str(folder).startswith(("./", "../", "/", "~"))  # Path drops the ./
    folder = Path(folder)
    if weights not in ("ema", "raw"):
        raise UserError(f"weights = '{weights}': ema or raw")
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
    checkpoint = latest_checkpoint(folder, steps)
    while checkpoint is not None:
        try:
            return _read_run(folder, origin, checkpoint, weights, device)
        except (OSError, UserError):
            newer = latest_checkpoint(folder, steps)
            if newer == checkpoint:
                raise
            checkpoint = newer  # its training has replaced it in the meantime
    raise UserError(
        f"{folder} has no checkpoint yet: its training has not got that far, run it again"
    )


def _read_run(
    folder: Path, origin: RunOrigin, checkpoint: Path, weights: str, device: torch.device | str
) -> Run:
    price = read_price(checkpoint)
    half_life = price.half_life if weights == "ema" else None
    configured = f"half-life {origin.ema.half_life:g} images"
    average = configured if half_life is None else "average"
    file = checkpoint / f"{weights}.safetensors"
    check_file(file)
    spec = read_spec(file)
    codec = kept_codec(spec.codec, folder / FOLDER) if isinstance(spec.codec, LatentSpec) else None
    model = spec.build(codec)
    load_weights(model.network, file)
    model = model.to(device).eval().requires_grad_(False)
    return Run(
        folder=folder,
        name=folder.name,
        method=origin.method.name,
        teacher=price.teacher,
        model=model,
        data=origin.data,
        ema=average if weights == "ema" else "raw",
        config_sha256=price.config_sha256,
        weights_file=file,
        train_images=price.images,
        train_evals=price.evals,
        train_seconds=price.seconds,
        train_seed=origin.train.seed,
        ema_half_life=half_life,
        critic_features=price.critic_features,
    )
