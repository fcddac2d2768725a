"""Weights files: safetensors with the model's spec in the header, so that the file alone rebuilds
it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from core.config import parse
from core.errors import UserError, reason
from core.model import ModelSpec, upgraded
from core.tensors import open_tensors


def save_weights(path: Path, state: dict[str, torch.Tensor], spec: ModelSpec) -> None:
    """Network weights as safetensors, with the spec in the header: the file alone rebuilds the
    model."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={"spec": spec.model_dump_json()})


def read_spec(path: Path) -> ModelSpec:
    """The spec in a weights file's header."""
    try:
        with open_tensors(path) as file:
            metadata = file.metadata() or {}
    except OSError as error:
        raise UserError(
            f"{path} is damaged or incomplete ({error}): delete its checkpoint folder and train again"
        ) from error
    if "spec" not in metadata:
        raise UserError(
            f"{path} is not a weights file of this repository: it carries no model spec"
        )
    try:
        spec = json.loads(metadata["spec"])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its model spec is not valid JSON ({reason(error)})") from error
    return parse(ModelSpec, upgraded(spec), str(path))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, on the CPU."""
    try:
        with open_tensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
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
