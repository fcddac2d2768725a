"""Every method of the registry with a transformer in place of the U-Net of its shipped config."""

from __future__ import annotations

import pytest
import torch

import lab
from core.networks.dit import DiT
from core.training.checkpoints import latest_checkpoint
from tests.helpers.laboratory import Laboratory
from tests.helpers.runs import weights

SIZES = {"name": "dit", "width": 16, "depth": 2, "heads": 2, "patch": 2}
OTHERS = ("ppca", "vae", "gan", "autoencoder")  # networks of their own kind


def transformer(network: dict) -> dict:
    """A DiT where the network is a U-Net, told what that is told."""
    if "name" in network:
        return network
    told = {k: network[k] for k in ("second_time", "time_scale") if k in network}
    return SIZES | told


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    return Laboratory(folder, network=transformer, budget={"images": 64})


@pytest.mark.parametrize("method", [m for m in lab.METHODS if m not in OTHERS])
def test_a_method_trains_a_transformer(transformers, method):
    """Weights of the blocks move and stay finite, and the model is sampled."""
    folder = transformers.made(method)
    run = lab.load(folder)
    network = run.model.network
    assert isinstance(getattr(network, "network", network), DiT)
    before = transformers.built(method).student.network.state_dict()
    after = weights(folder, "raw")
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert any(name.startswith("blocks.") for name in moved), moved
    assert lab.sample(run, n=2).float().std() > 0
    assert latest_checkpoint(folder) is not None
