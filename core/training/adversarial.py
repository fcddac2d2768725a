"""Losses of critics: the relativistic pairing game with zero-centred gradient penalties."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.counting import count_unseen


def relativistic_gap(winner: Tensor, loser: Tensor) -> Tensor:
    """[B]: softplus(D(loser) - D(winner)) for a critic's values [B, 1] (Jolicoeur-Martineau 2018,
    with the pairing of Huang et al. 2024, eq. 2)."""
    return F.softplus(loser - winner).flatten()


def penalised_critic_loss(
    critic: nn.Module, real: Tensor, fake: Tensor, inputs: dict[str, Tensor], gamma: float
) -> Tensor:
    """[B]: softplus(D(G(z)) - D(x)) + gamma/2 (||grad D(x)||^2 + ||grad D(G(z))||^2) for images
    [B, C, S, S]: R1 and R2 (Huang et al. 2024, sec. 3).

    inputs: what the critic is told besides the image, by name.
    """
    real, fake = real.detach().requires_grad_(True), fake.detach().requires_grad_(True)
    a, b = critic(real, **inputs), critic(fake, **inputs)
    (grad_real,) = torch.autograd.grad(a.sum(), real, create_graph=True)
    (grad_fake,) = torch.autograd.grad(b.sum(), fake, create_graph=True)
    # Hooks count both forwards and their backward; each penalty takes one backward to the image
    # and one through that, which they do not see.
    count_unseen(3.0 * (len(real) + len(fake)))
    penalty = grad_real.square().flatten(1).sum(1) + grad_fake.square().flatten(1).sum(1)
    return relativistic_gap(a, b) + 0.5 * gamma * penalty
