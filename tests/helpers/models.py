"""A Model of any network, for tests that need no config."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from core.diffusion.paths import Path
from core.diffusion.tables import BetaTable
from core.model import Model, ModelSpec

Network = TypeVar("Network", bound=nn.Module)


def awake(net: Network, seed: int = 0) -> Network:
    """In float64, with nothing left of the zeros it starts with."""
    torch.manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def model_of(
    net: nn.Module, path: Path | BetaTable | str, prediction: Any = "v", **spec: Any
) -> Model:
    """Samples are 1x8x8 and unconditional unless `spec` says otherwise."""
    named = path.config if isinstance(path, Path) else path
    values = {"channels": 1, "side": 8, "num_classes": 0} | spec
    return Model(net, ModelSpec(path=named, prediction=prediction, **values))
