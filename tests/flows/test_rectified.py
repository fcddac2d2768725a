"""Rectified flow finds the known velocity between Gaussians; its pairs and its distillation keep
their promises."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from core.data.pairs import PairSource
from core.diffusion.times import TimeConfig, make_time_sampler
from core.errors import UserError
from core.noise import Noise
from core.pairs import generate_pairs
from core.sampling.sample import sample_images
from core.setting import Setting
from flows.rectified import RectifiedFlow, RectifiedFlowConfig
from lab import load
from tests.helpers.fit import fit
from tests.helpers.gaussian import MEAN, SHAPE, STD, AffineInX
from tests.helpers.models import model_of
from tests.helpers.tiny import train_tiny


def test_learned_velocity_between_gaussians_is_the_known_one():
    """For x0 ~ N(m, s^2) and eps ~ N(0, 1): u(x, t) = -m + (t - (1 - t) s^2) / ((1 - t)^2 s^2 +
    t^2) (x - (1 - t) m)."""
    torch.manual_seed(0)
    model = model_of(AffineInX(), "rectified", "u", side=2)
    method = RectifiedFlow(RectifiedFlowConfig(name="rectified-flow"), model, None)
    fit(method, 2500)
    x = torch.randn(200, *SHAPE)
    for time in (0.1, 0.5, 0.9):
        t = torch.tensor(time, dtype=torch.float64)
        variance = (1 - time) ** 2 * STD**2 + time**2
        known = -MEAN + (time - (1 - time) * STD**2) / variance * (x - (1 - time) * MEAN)
        with torch.no_grad():
            assert float((method.student.u(x, t) - known).square().mean().sqrt()) < 0.05 * float(
                known.std()
            )


@pytest.mark.parametrize(
    ("config", "density"),
    [
        (TimeConfig(), lambda t: 1.0),
        (
            TimeConfig(name="logit-normal", mean=-0.5, std=1.2),
            lambda t: (
                math.exp(-0.5 * ((math.log(t / (1 - t)) + 0.5) / 1.2) ** 2)
                / (1.2 * math.sqrt(2 * math.pi) * t * (1 - t))
            ),
        ),
        (
            TimeConfig(name="u-shaped", a=4.0),
            lambda t: (math.exp(4 * t) + math.exp(4 * (1 - t))) / (2 * (math.exp(4) - 1) / 4),
        ),
    ],
)
def test_times_follow_their_density(config, density):
    t = make_time_sampler(config)(Noise(3, torch.arange(200_000)))
    counts = torch.histc(t.float(), bins=20, min=0, max=1) / len(t)
    for k in range(20):
        fine = [(k + (j + 0.5) / 50) / 20 for j in range(50)]
        expected = sum(density(v) for v in fine) / 50 / 20
        assert abs(float(counts[k]) - expected) < 4 * math.sqrt(expected / len(t)) + 1e-4


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow") / "flow"
    train_tiny(folder, "rectified-flow", prediction="u", path="rectified", images=12_800, lr=3e-3)
    return load(folder)


def test_pairs_are_noise_and_where_the_flow_takes_it(flow, tmp_path):
    generate_pairs(flow, tmp_path / "p", count=20, sampler="heun", steps=3, seed=5, shard=8)
    source = PairSource(tmp_path / "p", seed=0)
    batch = source.draw(torch.arange(20), torch.device("cpu"))
    assert sorted(source.index[source.order(torch.arange(20))].tolist()) == list(range(20))
    # carry the batch's own noise through the flow once more, by hand: Heun in t with the last step
    # Euler
    x, times = batch.eps, [1.0, 2 / 3, 1 / 3, 0.0]
    with torch.no_grad():
        for a, b in itertools.pairwise(times):
            t, s = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
            u = flow.model.u(x, t, batch.condition)
            end = x + (b - a) * u
            x = end if b == 0 else x + (b - a) * 0.5 * (u + flow.model.u(end, s, batch.condition))
    assert torch.allclose(x, batch.x0, atol=3e-3)  # half precision on disk
    manifest = json.loads((tmp_path / "p" / "pairs.json").read_text())
    assert manifest["evals"] == 20 * (2 * 3 - 1)


def test_pairs_resume_and_refuse_what_is_broken(flow, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    generate_pairs(flow, whole, count=20, sampler="ddim", steps=2, seed=5, shard=8)
    generate_pairs(flow, parts, count=20, sampler="ddim", steps=2, seed=5, shard=8, batch_size=3)
    # lose the last shard, as if killed before it was recorded
    manifest = json.loads((parts / "pairs.json").read_text())
    manifest["shards"].pop("000002.safetensors")
    (parts / "pairs.json").write_text(json.dumps(manifest))
    (parts / "000002.safetensors").unlink()
    with pytest.raises(UserError, match="2 of 3 shards"):
        PairSource(parts, 0)
    generate_pairs(flow, parts, count=20, sampler="ddim", steps=2, seed=5, shard=8)
    a, b = PairSource(whole, 0), PairSource(parts, 0)
    assert torch.equal(a.index, b.index) and torch.allclose(a.x0.float(), b.x0.float(), atol=2e-3)

    shard = whole / "000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"000001.safetensors is truncated"):
        PairSource(whole, 0)
    with pytest.raises(UserError, match="another recipe: steps is 2 there and 3 here"):
        generate_pairs(flow, parts, count=20, sampler="ddim", steps=3, seed=5, shard=8)
    with pytest.raises(UserError, match="adds noise"):
        generate_pairs(flow, tmp_path / "x", count=20, sampler="ddpm", steps=3, seed=5)
    assert not (tmp_path / "x").exists()


def test_one_step_distillation_learns_the_stored_coupling(flow, tmp_path):
    """After distillation one step from stored noise is far closer to its partner than the flow's
    own single step."""
    generate_pairs(flow, tmp_path / "p", count=64, sampler="ddim", steps=8, seed=5)
    folder = tmp_path / "student"
    train_tiny(
        folder,
        "flow-distillation",
        method={"init": str(flow.folder), "pairs": str(tmp_path / "p")},
        images=12_800,
        lr=3e-3,
    )
    student = load(folder, "raw")
    batch = PairSource(tmp_path / "p", 0).draw(torch.arange(64), torch.device("cpu"))
    one = torch.ones((), dtype=torch.float64)

    def error(run):
        with torch.no_grad():
            return float((run.model.x0(batch.eps, one, batch.condition) - batch.x0).square().mean())

    assert error(student) < 0.5 * error(flow), (error(student), error(flow))
    assert student.train_evals > 12_800 * 3  # the pairs' own price is on the bill
    assert torch.equal(
        *(
            sample_images(student.model, Setting(sampler=name, steps=1), torch.arange(4))
            for name in ("ddim", "euler")
        )
    )
