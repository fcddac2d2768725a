"""A finished or running run, as something to sample from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import yaml
from torch import Tensor

from core.data import DataConfig
from core.data.dataset import to_uint8
from core.diffusion.grids import make_grid
from core.errors import UserError, nearest
from core.files import read_text, sha256_of
from core.model import Model
from core.model_spec import ModelSpec, build_model, load_weights, read_spec
from core.noise import Noise
from core.sampling.denoisers import THRESHOLDS, denoiser_for
from core.sampling.solvers import Callback, make_sampler
from core.training.checkpoints import latest_checkpoint


@dataclass(frozen=True)
class Run:
    """A model with its origin. ema: which weights these are, in words for a protocol; train_*: the
    price of training.

    data and the price are None where a model that was trained elsewhere does not say.
    """

    folder: Path
    name: str
    method: str
    teacher: str | None
    spec: ModelSpec
    model: Model
    data: DataConfig | None
    ema: str
    config_sha256: str
    weights_file: Path
    train_images: int | None
    train_evals: float | None
    train_seconds: float | None

    @property
    def channels(self) -> int:
        return self.spec.channels

    @property
    def side(self) -> int:
        return self.spec.side

    @property
    def num_classes(self) -> int:
        return self.spec.num_classes

    @property
    def autocast(self) -> bool:
        return self.model.autocast

    @cached_property
    def weights_sha256(self) -> str:
        return sha256_of(self.weights_file)


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
    folder = Path(folder)
    if weights not in ("ema", "raw"):
        raise UserError(f"weights = '{weights}': ema or raw")
    if not (folder / "config.yaml").is_file():
        for other in formats:
            if other.recognise(folder):
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
    checkpoint = latest_checkpoint(folder, steps)
    if checkpoint is None:
        raise UserError(
            f"{folder} has no checkpoint yet: its training has not got that far, run it again"
        )
    config = yaml.safe_load(read_text(folder / "config.yaml"))
    price = json.loads(read_text(checkpoint / "price.json"))
    file = checkpoint / f"{weights}.safetensors"
    spec = read_spec(file)
    model = build_model(spec)
    load_weights(model.network, file)
    model = model.to(device).eval().requires_grad_(False)
    return Run(
        folder=folder,
        name=folder.name,
        method=config["method"]["name"],
        teacher=price["teacher"],
        spec=spec,
        model=model,
        data=DataConfig(**config["data"]),
        ema=f"half-life {config['ema']['half_life']:g} images" if weights == "ema" else "raw",
        config_sha256=price["config_sha256"],
        weights_file=file,
        train_images=price["images"],
        train_evals=price["evals"],
        train_seconds=price["seconds"],
    )


@torch.no_grad()
def sample_images(
    run: Run,
    sampler: str,
    steps: int,
    indices: Tensor,
    seed: int,
    guidance_scale: float = 1.0,
    threshold: str = "none",
    grid: str | None = None,
    label: Tensor | int | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """uint8 [B, C, H, W] images of the samples with these global indices (int64 [B]).

    Noise comes from (seed, index), so batch size and process count change nothing. Where `label` is
    None, classes take turns by index: a random number of images of each class would only add noise
    to whatever is measured.
    """
    chosen = make_sampler(sampler)
    if threshold not in THRESHOLDS:
        raise UserError(f"unknown threshold '{threshold}'{nearest(threshold, THRESHOLDS)}")
    times = make_grid(grid or chosen.grid, run.model.path, steps, run.model.discrete_steps)
    device = next(run.model.parameters()).device
    rng = Noise(seed, indices.to(device))
    if isinstance(label, int):
        label = torch.full((len(indices),), label)
    if run.num_classes:
        label = rng.indices % run.num_classes if label is None else label.to(device)
    elif label is not None:
        raise UserError(f"label given, but run {run.folder} is unconditional")
    denoiser = denoiser_for(run.model, label, run.num_classes, guidance_scale, threshold)
    noise = rng.normal((run.channels, run.side, run.side), "prior")
    return to_uint8(chosen.run(denoiser, noise, times, rng, callback)).cpu()
