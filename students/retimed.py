"""A trained network that is told the time on another scale, with nothing else about it changed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from core.errors import UserError
from core.model import Model
from core.networks.unet import sinusoidal_embedding

TIMES = 512  # that the two embeddings are compared at


def retimed(model: Model, scale: float, iterations: int = 2000) -> Model:
    """A copy of the model whose network multiplies times by `scale` before it embeds them. The
    layers behind the sinusoids are fitted, by least squares over times alone, to what they gave
    before; no image is looked at. All other weights are the model's own.

    A derivative in t is what this is for: at scale 1000 it is that of waves of period 0.006, which
    no one sees in the value of the network. Lu and Song (2025, sec. 4.1) train their teachers on
    times at scale 1; Chen et al. (2025, arXiv 2503.09641, sec. 3.2) bring teachers of scale 1000
    there by training, before they distil them.

    Raises:
        UserError: the network does not embed times at a scale.
    """
    shape = model.spec.network
    if "time_scale" not in type(shape).model_fields:
        raise UserError(
            f"network {shape.name} embeds no time at a scale that could be changed: set "
            "method.time_scale=null"
        )
    spec = model.spec.model_copy(
        update={"network": shape.model_copy(update={"time_scale": scale})}
    )
    network = copy.deepcopy(model.network)
    network.time_scale = scale
    _fit(network, model.network, iterations)
    return Model(network, spec)


def embedded_times(network: nn.Module, t: Tensor) -> Tensor:
    """What the network makes of times t [B], [B, E]."""
    waves = sinusoidal_embedding(t, network.width, network.time_scale)
    return network.time(waves.to(next(network.time.parameters()).dtype))


def _fit(network: nn.Module, old: nn.Module, iterations: int) -> None:
    device = next(network.parameters()).device
    t = torch.linspace(0, 1, TIMES, dtype=torch.float64, device=device)
    with torch.no_grad():
        goal = embedded_times(old, t)
    network.time.requires_grad_(True)  # a loaded teacher's weights ask for none
    optimizer = torch.optim.Adam(network.time.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    with torch.enable_grad():
        for _ in range(iterations):
            loss = (embedded_times(network, t) - goal).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
