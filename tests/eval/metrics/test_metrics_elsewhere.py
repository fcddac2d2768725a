"""The same features give the same numbers in other public implementations: pytorch-fid,
torchmetrics and prdc."""

from __future__ import annotations

import pytest
import torch

from eval.metrics.distances import frechet_distance, kernel_distance, precision_recall, statistics


@pytest.fixture(params=[(400, 400, 16), (700, 500, 64)], ids=["16 features", "64 features"])
def sets(request) -> tuple[torch.Tensor, torch.Tensor]:
    n, m, width = request.param
    generator = torch.Generator().manual_seed(width)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    a = torch.randn(n, width, generator=generator) @ mixing
    return a, 0.8 * torch.randn(m, width, generator=generator) @ mixing + 0.2


def test_frechet_distance_is_pytorch_fids(sets):
    theirs = pytest.importorskip("pytorch_fid.fid_score").calculate_frechet_distance
    a, b = map(statistics, sets)
    assert frechet_distance(a, b) == pytest.approx(theirs(a.mean, a.cov, b.mean, b.cov), rel=1e-6)


def test_kernel_distance_is_torchmetrics(sets):
    """On sets of one size below 1,000, where every subset is the whole."""
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    size = min(map(len, sets))
    a, b = (x[:size] for x in sets)
    assert kernel_distance(a, b) == pytest.approx(float(poly_mmd(a.double(), b.double())), rel=1e-6)


def test_precision_and_recall_are_prdcs(sets, capsys):
    compute = pytest.importorskip("prdc").compute_prdc
    size = min(map(len, sets))
    a, b = (x[:size] for x in sets)
    theirs = compute(b.numpy(), a.numpy(), nearest_k=3)
    assert precision_recall(*sets) == pytest.approx(
        (theirs["precision"], theirs["recall"]), abs=1.5 / size
    )
