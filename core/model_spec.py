"""What a Model is made of, as plain data that travels with its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Tag, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from core.config import Strict, parse
from core.diffusion.paths import PATHS, make_path
from core.diffusion.predictions import Prediction
from core.diffusion.tables import BetaTable
from core.errors import UserError
from core.model import Boundary, Model
from core.networks import NetworkConfig
from core.networks.unet import UNetConfig


def _kind_of_path(value: Any) -> str:
    return "table" if isinstance(value, (dict, BetaTable)) else "name"


PathConfig = Annotated[
    Annotated[Literal[tuple(PATHS)], Tag("name")] | Annotated[BetaTable, Tag("table")],
    Discriminator(_kind_of_path),
]


class ModelConfig(Strict):
    """path: one of core.diffusion.paths.PATHS, or a table of betas
    (core.diffusion.tables.BetaTable); discrete_steps: train at the times k / discrete_steps only
    (null = continuous time)."""

    network: NetworkConfig = UNetConfig()
    path: PathConfig = "vp-cosine"
    prediction: Prediction = "v"
    discrete_steps: int | None = None
    autocast: bool = False


class ModelSpec(ModelConfig):
    """A ModelConfig with what the data decided, and the consistency boundary if there is one."""

    channels: int
    side: int
    num_classes: int
    boundary_t_min: float | None = None
    boundary_sigma_data: float = 1.0

    @model_validator(mode="after")
    def _fits(self) -> ModelSpec:
        if self.boundary_t_min is not None and self.prediction != "v":
            raise ValueError("a consistency boundary needs prediction v")
        return self


def build_model(spec: ModelSpec) -> Model:
    """A freshly initialised Model; raises UserError if the images do not fit the network."""
    network = spec.network.build(spec.channels, spec.side, spec.num_classes)
    boundary = (
        None
        if spec.boundary_t_min is None
        else Boundary(spec.boundary_t_min, spec.boundary_sigma_data)
    )
    path = make_path(spec.path) if isinstance(spec.path, str) else spec.path.build()
    return Model(network, path, spec.prediction, boundary, spec.discrete_steps, spec.autocast)


def save_weights(path: Path, state: dict[str, torch.Tensor], spec: ModelSpec) -> None:
    """Network weights as safetensors, with the spec in the header: the file alone rebuilds the
    model."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={"spec": spec.model_dump_json()})


def read_spec(path: Path) -> ModelSpec:
    """The spec in a weights file's header."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or incomplete ({error}): delete its checkpoint folder and train again"
        ) from error
    if "spec" not in metadata:
        raise UserError(
            f"{path} is not a weights file of this repository: it carries no model spec"
        )
    return parse(ModelSpec, json.loads(metadata["spec"]), str(path))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, on the CPU."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or incomplete ({error}): delete its checkpoint folder and train again"
        ) from error


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Loads a weights file into `network`, which must have exactly its tensors.

    Raises:
        UserError: a damaged file, or another architecture, naming the first tensor that differs.
    """
    given, wanted = read_weights(path), network.state_dict()
    for name in sorted(given.keys() | wanted.keys()):
        if name not in given or name not in wanted:
            where = "the checkpoint" if name not in given else "this network"
            raise UserError(
                f"{path} is of another architecture: tensor '{name}' is missing in {where}"
            )
        if given[name].shape != wanted[name].shape:
            raise UserError(
                f"{path} is of another architecture: tensor '{name}' is {tuple(given[name].shape)} in the checkpoint "
                f"and {tuple(wanted[name].shape)} in this network"
            )
    network.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in given.items()})
