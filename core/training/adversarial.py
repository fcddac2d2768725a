"""Losses of critics: the relativistic pairing game with zero-centred gradient penalties, and the
classic games on critics that give a value to each place of an image."""

from __future__ import annotations

from collections.abc import Sequence

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


def non_saturating(values: Tensor) -> Tensor:
    """[B]: softplus(-D) of a critic's values [B, K], meaned over the K places: what a generator
    minimises (Goodfellow et al. 2014), and a critic on real images."""
    return F.softplus(-values.float()).flatten(1).mean(1)


def hinge(values: Tensor, real: bool) -> Tensor:
    """[B]: max(0, 1 - D) for real images and max(0, 1 + D) for others, meaned over the K places of
    values [B, K]: what a hinge critic minimises (Lim and Ye 2017; Sauer et al. 2023, eq. 3)."""
    return F.relu(1 - values if real else 1 + values).flatten(1).mean(1)


def slope_penalty(values: Tensor, inputs: Tensor | Sequence[Tensor]) -> Tensor:
    """[B]: the squared slope of a critic's values [B, K], summed, in its inputs [B, ...] (one or
    several), which ask for gradients: R1 where they belong to real images (Mescheder et al. 2018).
    """
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    slopes = torch.autograd.grad(values.sum(), inputs, create_graph=True)
    count_unseen(3.0 * len(values))  # a backward to the inputs, and one through that
    return torch.stack([slope.square().flatten(1).sum(1) for slope in slopes]).sum(0)
