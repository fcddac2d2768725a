"""A trained network that is told the time on another scale, with nothing else about it changed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from core.errors import UserError
from core.model import Model
from core.networks.embeddings import Embedded, embedder, sinusoidal_embedding

TIMES = 512  # that the two embeddings are compared at
ITERATIONS = 500  # few on purpose: see `retimed`


def retimed(model: Model, scale: float) -> Model:
    """A copy of the model whose network multiplies times by `scale` before it embeds them.

    The layers behind the sinusoids are begun anew and fitted to what they gave before, by least
    squares over times alone; no image is looked at. All other weights are the model's own. The fit
    is stopped early: a longer one follows the old embedding's fast waves by large weights, which
    change little in what the network gives and much in how it trains (on eight Gaussians sCD ended
    at an error of 0.05 after 500 iterations, and of 0.28 after 2000).

    A derivative in t is what this is for: at scale 1000 it is that of waves of period 0.006, which
    no one sees in the value of the network. Lu and Song (2025, sec. 4.1) train their teachers on
    times at scale 1; Chen et al. (2025, arXiv 2503.09641, sec. 3.2) bring teachers of scale 1000
    there by training, before they distil them.

    Raises:
        UserError: the network does not embed times at a scale.
    """
    shape = model.spec.network
    if not isinstance(model.network, Embedded):
        raise UserError(
            f"network {shape.name} embeds no time at a scale that could be changed: set "
            "method.time_scale=null"
        )
    network = copy.deepcopy(model.network)
    network.time_scale = scale
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last = network.time[-1]
        network.time = embedder(network.waves, last.out_features).to(last.weight)
    _fit(network, model.network)
    named = shape.model_copy(update={"time_scale": scale})
    return Model(network, model.spec.model_copy(update={"network": named}))


def embedded_times(network: Embedded, t: Tensor) -> Tensor:
    """What the network makes of times t [B], [B, E]."""
    waves = sinusoidal_embedding(t, network.waves, network.time_scale)
    return network.time(waves.to(next(network.time.parameters()).dtype))


def _fit(network: Embedded, old: nn.Module) -> None:
    t = torch.linspace(0, 1, TIMES, dtype=torch.float64, device=next(old.parameters()).device)
    with torch.no_grad():
        goal = embedded_times(old, t)
    optimizer = torch.optim.Adam(network.time.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ITERATIONS)
    with torch.enable_grad():
        for _ in range(ITERATIONS):
            loss = (embedded_times(network, t) - goal).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
