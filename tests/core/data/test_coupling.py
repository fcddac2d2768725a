"""Minibatch optimal transport against scipy's assignment, and what it must not depend on."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from core.config import parse
from core.data.coupling import transport_plan, transported
from core.errors import UserError
from core.training.method import noise_of
from flows.rectified import RectifiedFlow, RectifiedFlowConfig
from tests.helpers.fit import gaussian_batch, loss_of
from tests.helpers.gaussian import AffineInX
from tests.helpers.models import model_of


def scene(count: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = 0.5 * torch.randn(count, 1, 4, 4, generator=generator) + 0.3
    return x0, torch.randn(count, 1, 4, 4, generator=generator)


def lengths(x0: Tensor, eps: Tensor) -> float:
    return float((eps - x0).square().sum())


def test_the_plan_is_the_best_assignment():
    x0, eps = scene()
    plan = transport_plan(x0, eps)
    assert sorted(plan.tolist()) == list(range(64))
    cost = torch.cdist(x0.flatten(1), eps.flatten(1)).square()
    rows, columns = linear_sum_assignment(cost.numpy())
    assert lengths(x0, eps[plan]) == pytest.approx(float(cost[rows, columns].sum()), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [1, 2, 8, 64])
def test_ways_are_never_longer_than_independent_ones(block, seed):
    x0, eps = scene(seed=seed)
    moved = transported(x0, eps, block)
    assert lengths(x0, moved) <= lengths(x0, eps) * (1 + 1e-6)
    assert torch.equal(moved.flatten().sort().values, eps.flatten().sort().values)
    if block == 64:
        assert lengths(x0, moved) < 0.97 * lengths(x0, eps)
    if block == 1:
        assert moved is eps


def test_blocks_are_apart_whatever_the_batch():
    x0, eps = scene()
    whole = transported(x0, eps, 16)
    halves = [transported(x0[part], eps[part], 16) for part in torch.arange(64).split(32)]
    assert torch.equal(whole, torch.cat(halves))
    with pytest.raises(UserError, match="24 images at a time, no multiple of method.transport=16"):
        transported(x0[:24], eps[:24], 16)


def test_classes_keep_their_noise():
    x0, eps = scene()
    label = torch.arange(64) % 3
    moved = transported(x0, eps, 32, label)
    assert lengths(x0, moved) < lengths(x0, eps)
    for block in torch.arange(64).split(32):
        for one in range(3):
            here = block[label[block] == one]
            before, after = ({row.sum().item() for row in part[here]} for part in (eps, moved))
            assert before == after


def test_a_flow_learns_on_the_coupling():
    """Its loss is that of the ways in the plan, at an untrained network that answers 0."""
    net = AffineInX()
    for p in net.net[-1].parameters():
        p.data.zero_()
    method = RectifiedFlow(
        RectifiedFlowConfig(name="x", transport=16), model_of(net, "rectified", "u", side=2), None
    )
    batch = gaussian_batch(32)
    ways = transported(batch.x0, noise_of(batch), 16) - batch.x0
    torch.testing.assert_close(loss_of(method, batch), ways.square().flatten(1).mean(1))
    with pytest.raises(UserError, match="leave one out"):
        parse(RectifiedFlowConfig, {"name": "x", "transport": 8, "pairs": "there"}, "test")
