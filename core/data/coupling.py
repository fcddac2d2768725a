"""Couplings: which noise goes with which image, where it is not drawn independently."""

from __future__ import annotations

import torch
from torch import Tensor

from core.errors import UserError


def transport_plan(x0: Tensor, eps: Tensor) -> Tensor:
    """[B] int64: the noise of each image in the plan of least squared distance between images and
    noise, both [B, ...], by the library POT.

    The exact plan of two sets of one size is a permutation, so that nothing need be drawn from it.

    Raises:
        UserError: POT is missing.
    """
    try:
        import ot
    except ImportError as error:
        raise UserError("optimal transport needs the library POT: pip install POT") from error
    cost = torch.cdist(x0.flatten(1).double(), eps.flatten(1).double()).square().cpu().numpy()
    plan = torch.from_numpy(ot.emd([], [], cost))  # [] is the uniform distribution
    return plan.argmax(1).to(x0.device)


def transported(x0: Tensor, eps: Tensor, block: int, label: Tensor | None = None) -> Tensor:
    """The noise [B, ...] in another order: within each `block` of neighbours by optimal transport
    to the images x0 [B, ...] (Tong et al. 2024, algorithm 3; Pooladian et al. 2023).

    Blocks are of a fixed size, and not the batch that a process happens to have, so that the result
    depends on neither batch size nor the number of processes. With label [B], only images of one
    class exchange their noise: across classes the noise of a class would be no normal one, from
    which it is sampled.

    Raises:
        UserError: the batch is no multiple of the block, or POT is missing.
    """
    if block == 1:
        return eps
    if len(x0) % block:
        raise UserError(
            f"train.batch_size gives every process {len(x0)} images at a time, no multiple of "
            f"method.transport={block}: plans would depend on the number of processes"
        )
    group = torch.arange(len(x0), device=x0.device) // block
    if label is not None:
        group = group * (int(label.max()) + 1) + label
    moved = eps.clone()
    for one in group.unique():
        here = (group == one).nonzero()[:, 0]
        moved[here] = eps[here][transport_plan(x0[here], eps[here])]
    return moved
