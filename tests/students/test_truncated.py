"""Truncated consistency: its noise levels, and which network supervises where."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import nn

from core.condition import UNCONDITIONED
from core.data import Batch
from core.diffusion.parameterisations import ConsistencyFunction
from core.errors import UserError
from core.noise import Noise
from core.training.method import Progress
from students.truncated import TruncatedConsistency, TruncatedConsistencyConfig, time_of
from tests.helpers.fit import fit, with_student
from tests.helpers.gaussian import AffineInX
from tests.helpers.models import model_of
from tests.students.test_consistency_training import batch_of, error_of
from tests.students.test_scm import ExactMap

V = ConsistencyFunction(output="v")


def method_of(network: nn.Module, path: str = "vp-cosine", **options) -> TruncatedConsistency:
    config = TruncatedConsistencyConfig(name="truncated-consistency", teacher="x", **options)
    first = model_of(network, path, V, side=2).requires_grad_(False)
    return TruncatedConsistency(config, first, None)


@pytest.mark.parametrize("freedom", [0.01, 3.0])
def test_noise_levels_have_the_truncated_distribution(freedom):
    """Of scipy's Student t, by the distance of distribution functions."""
    method = method_of(AffineInX(), freedom=freedom, share=0.0)
    high, _ = method.noise_levels(Noise(0, torch.arange(20_000)))
    t = stats.t(freedom, loc=0, scale=0.2)
    ends = t.cdf(high.new_tensor([1.0, 80.0]).log().numpy())
    wanted = (t.cdf(high.log().numpy()) - ends[0]) / (ends[1] - ends[0])
    assert stats.kstest(wanted, "uniform").statistic < 0.02


def test_a_share_of_the_batch_is_at_the_cut():
    method = method_of(AffineInX(), cut=2.0, ratio=0.99)
    high, low = method.noise_levels(Noise(0, torch.arange(20_000)))
    assert float((high == 2.0).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(high.min()) == 2.0
    gap = (1 + 8 * torch.sigmoid(-high)) * 0.01 * high
    assert torch.allclose(high - low, gap, atol=1e-12)
    path = method.student.path
    t = time_of(path, high)
    assert torch.allclose(path.sigma(t) / path.alpha(t), high, rtol=1e-6)


def test_the_first_stage_supervises_below_the_cut():
    """A first stage that is replaced changes the loss of those samples only whose earlier time is
    below the cut, and these have the smaller weight."""
    torch.manual_seed(0)
    student, one, other = (AffineInX() for _ in range(3))
    losses = []
    for first in (one, other):
        method = with_student(method_of(first, ratio=0.9), student)
        losses.append(method.loss("student", batch_f(512), Progress(0, 0, 0.0)).per_sample.detach())
    _, low = method.noise_levels(batch_f(512).rng)
    changed = (losses[0] - losses[1]).abs() > 0
    assert torch.equal(changed, low < 1.0) and 100 < int(changed.sum()) < 400
    heavy = with_student(method_of(other, ratio=0.9, boundary_weight=1.0), student)
    ratio = heavy.loss("student", batch_f(512), Progress(0, 0, 0.0)).per_sample.detach() / losses[1]
    assert torch.allclose(ratio, torch.where(low < 1.0, 10.0, 1.0).float(), rtol=1e-4)


def batch_f(count: int) -> Batch:
    batch = batch_of(count)
    return batch._replace(x0=batch.x0.float(), condition=UNCONDITIONED)


@pytest.mark.slow
def test_above_the_cut_the_map_approaches_the_exact_one():
    """From a first stage that is exact below the cut, a student that knows nothing learns the
    rest."""
    torch.manual_seed(0)
    exact = ExactMap("vp-cosine")
    method = with_student(method_of(exact, ratio=0.95, top=1e3), AffineInX())
    fit(method, 1000, lr=1e-2)
    for start in (0.6, 0.8, 0.95):
        assert error_of(method.student, start) < 0.1, start


def test_what_is_no_first_stage_is_refused():
    config = TruncatedConsistencyConfig(name="", teacher="x")
    with pytest.raises(UserError, match="no consistency model"):
        TruncatedConsistency(config, model_of(AffineInX(), "vp-cosine", "v"), None)
    with pytest.raises(UserError, match="cut=90"):
        method_of(AffineInX(), cut=90.0)
