"""Trained models with their origin, loaded from the folders of runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import yaml

from core.data import DataConfig
from core.errors import UserError, nearest
from core.files import read_text, sha256_of
from core.model import Model, ModelSpec
from core.training.checkpoints import check_file, latest_checkpoint
from core.weights import load_weights, read_spec


@dataclass(frozen=True)
class Run:
    """A trained model with its origin.

    ema: which weights these are, for the protocol of a row; train_*: the price and the seed of
    training, None like `data` where a model that was trained elsewhere does not say.
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
    more_weights: tuple[Path, ...] = ()  # the other files, where they are in shards
    critic_features: tuple[str, ...] = ()  # what critics saw that it was trained by

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @cached_property
    def weights_sha256(self) -> str:
        files = (self.weights_file, *self.more_weights)
        hashes = [sha256_of(file) for file in files]
        return hashes[0] if len(files) == 1 else sha256("".join(hashes).encode()).hexdigest()


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
    config = yaml.safe_load(read_text(folder / "config.yaml"))
    checkpoint = latest_checkpoint(folder, steps)
    while checkpoint is not None:
        try:
            return _read_run(folder, config, checkpoint, weights, device)
        except (OSError, UserError):
            newer = latest_checkpoint(folder, steps)
            if newer == checkpoint:
                raise
            checkpoint = newer  # its training has replaced it in the meantime
    raise UserError(
        f"{folder} has no checkpoint yet: its training has not got that far, run it again"
    )


def _read_run(
    folder: Path, config: dict, checkpoint: Path, weights: str, device: torch.device | str
) -> Run:
    price = json.loads(read_text(checkpoint / "price.json"))
    file = checkpoint / f"{weights}.safetensors"
    check_file(file)
    model = read_spec(file).build()
    load_weights(model.network, file)
    model = model.to(device).eval().requires_grad_(False)
    return Run(
        folder=folder,
        name=folder.name,
        method=config["method"]["name"],
        teacher=price["teacher"],
        model=model,
        data=DataConfig(**config["data"]),
        ema=f"half-life {config['ema']['half_life']:g} images" if weights == "ema" else "raw",
        config_sha256=price["config_sha256"],
        weights_file=file,
        train_images=price["images"],
        train_evals=price["evals"],
        train_seconds=price["seconds"],
        train_seed=config["train"]["seed"],
        critic_features=tuple(price.get("critic_features", ())),
    )
