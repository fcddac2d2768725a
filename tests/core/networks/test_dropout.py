"""Addressed dropout: its law, and that masks belong to samples and to nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.networks.dropout import Dropout, address_dropout, dropout_of, same_dropout
from core.noise import Noise, rounded_rate


def noise(*indices: int) -> Noise:
    return Noise(5, torch.tensor(indices))


def test_masks_belong_to_samples():
    layer, x = Dropout(0.4), torch.rand(6, 3, 4, 5) + 1
    with dropout_of(noise(0, 1, 2, 3, 4, 5)):
        first, second = layer(x), layer(x)
    parts = []
    for indices in ((0, 1), (2, 3, 4, 5)):
        with dropout_of(noise(*indices)):
            parts.append((layer(x[list(indices)]), layer(x[list(indices)])))
    assert torch.equal(first, torch.cat([parts[0][0], parts[1][0]]))
    assert torch.equal(second, torch.cat([parts[0][1], parts[1][1]]))
    assert not torch.equal(first, second)  # every pass draws anew


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_law_of_masks(rate):
    """Kept values are scaled so that the mean stays; neither neighbours, nor samples, nor layers
    have anything to do with each other."""
    N, D = 64, 4096
    with dropout_of(noise(*range(N))):
        masks = [Dropout(rate)(torch.ones(N, D)) for _ in range(2)]
    kept = 1 - rounded_rate(rate)
    assert kept == pytest.approx(1 - rate, abs=2**-17)
    assert masks[0].unique().tolist() == [0.0, pytest.approx(1 / kept)]
    error = (rate / kept / (N * D)) ** 0.5
    for mask in masks:
        assert abs(float(mask.mean()) - 1) < 4 * error
    centred = [mask - 1 for mask in masks]
    variance = rate / kept
    for a, b in (
        (centred[0], centred[1]),
        (centred[0][:, 1:], centred[0][:, :-1]),
        (centred[0][:, 2:], centred[0][:, :-2]),
        (centred[0][1:], centred[0][:-1]),
    ):
        assert abs(float((a * b).mean())) < 4.5 * variance / (N * D) ** 0.5


def test_a_batch_twice_over_has_masks_of_its_own_in_each_half():
    layer, x = Dropout(0.5), torch.ones(3, 50)
    with dropout_of(noise(0, 1, 2)):
        both = layer(torch.cat([x, x]))
    with dropout_of(noise(0, 1, 2)):
        one, two = layer(x), layer(x)
    assert torch.equal(both, torch.cat([one, two]))


def test_the_same_masks_again():
    layer, x = Dropout(0.5), torch.ones(3, 50)
    with dropout_of(noise(0, 1, 2)):
        with same_dropout(x):
            target = layer(x)
        assert torch.equal(layer(x), target)
        assert not torch.equal(layer(x), target)


def test_elsewhere_it_is_pytorchs():
    layer, x = Dropout(0.5), torch.ones(4, 50)
    torch.manual_seed(0)
    expected = F.dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(layer(x), expected)
    torch.manual_seed(0)
    with dropout_of(noise(0, 1, 2)):  # 4 samples are no whole number of times 3
        assert torch.equal(layer(x), expected)
    with dropout_of(noise(0, 1, 2, 3)):
        assert torch.equal(layer.eval()(x), x)


def test_every_dropout_of_a_network_is_replaced():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.3), nn.ReLU())).eval()
    names = list(net.state_dict())
    address_dropout(net)
    assert type(net[1][0]) is Dropout and net[1][0].p == 0.3 and not net[1][0].training
    assert list(net.state_dict()) == names
