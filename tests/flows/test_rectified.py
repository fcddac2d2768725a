"""Rectified flow finds the known velocity between Gaussians; its pairs and its distillation keep
their promises."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import integrate

from core.condition import UNCONDITIONED, Condition
from core.data import Batch
from core.data.pairs import PairSource
from core.diffusion.paths import PATHS, make_path
from core.diffusion.times import TimeConfig, make_time_sampler, time_density
from core.errors import UserError
from core.noise import Noise
from core.pairs import generate_pairs
from core.sampling.sample import sample, sample_images
from core.setting import Setting
from core.training.method import Context, Progress
from flows.rectified import RectifiedFlow, RectifiedFlowConfig
from lab import load
from tests.helpers.fit import fit
from tests.helpers.gaussian import MEAN, SHAPE, STD, AffineInX
from tests.helpers.models import model_of
from tests.helpers.tiny import train_tiny


@pytest.mark.parametrize("prediction", ["u", "v"])
def test_learned_velocity_between_gaussians_is_the_known_one(prediction):
    """For x0 ~ N(m, s^2) and eps ~ N(0, 1): u(x, t) = -m + (t - (1 - t) s^2) / ((1 - t)^2 s^2 +
    t^2) (x - (1 - t) m)."""
    torch.manual_seed(0)
    model = model_of(AffineInX(), "rectified", prediction, side=2)
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


@pytest.mark.parametrize("path", PATHS)
def test_straight_coordinates_of_every_path(path):
    """y = x_t / (alpha + sigma) is the straight line at w, and w leads back to t."""
    path, t = make_path(path), torch.tensor([0.01, 0.3, 0.7, 0.9999, 1.0], dtype=torch.float64)
    w = path.straight(t)
    torch.testing.assert_close(path.from_straight(w), t, rtol=0, atol=1e-9)
    x0, eps = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = path.mix(x0, eps, t) / (path.alpha(t) + path.sigma(t))[:, None]
    torch.testing.assert_close(y, (1 - w[:, None]) * x0 + w[:, None] * eps)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("rectified", "u"), ("rectified", "v"), ("vp-cosine", "v"), ("vp-linear", "v")],
)
def test_loss_is_the_error_of_the_straight_velocity_at_times_drawn_straight(path, kind):
    """For a network that says nothing sensible, read by the conversions of core."""
    torch.manual_seed(0)
    model = model_of(AffineInX(), path, kind, side=2)
    config = RectifiedFlowConfig(name="x", time=TimeConfig(name="mixture", share=0.3))
    rng = Noise(5, torch.arange(50))
    batch = Batch(rng.normal(SHAPE, "data", dtype=torch.float64), UNCONDITIONED, rng)
    loss = RectifiedFlow(config, model, None).loss("student", batch, Progress(0, 0, 0.0))
    path, eps = model.path, rng.normal(SHAPE, "eps")
    one = torch.ones((), dtype=torch.float64)
    w = make_time_sampler(config.time)(rng) * path.straight(one)
    torch.testing.assert_close(path.straight(loss.t), w, rtol=0, atol=1e-9)
    with torch.no_grad():
        guess = model.denoised(path.mix(batch.x0, eps, loss.t), loss.t)
    expected = ((guess.eps - guess.x0) - (eps - batch.x0)).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.per_sample, expected.float(), rtol=1e-3, atol=1e-5)


def test_a_weight_in_place_of_sampling_has_the_same_mean_loss():
    torch.manual_seed(0)
    model = model_of(AffineInX(), "rectified", "v", side=2)
    rng = Noise(5, torch.arange(100_000))
    batch = Batch(MEAN + STD * rng.normal(SHAPE, "data"), UNCONDITIONED, rng)
    time, losses = TimeConfig(name="logit-normal", mean=-0.5), []
    for time_as in ("sampling", "weight"):
        config = RectifiedFlowConfig(name="x", time=time, time_as=time_as)
        with torch.no_grad():
            loss = RectifiedFlow(config, model, None).loss("student", batch, Progress(0, 0, 0.0))
        losses.append(loss.per_sample.double())
    error = math.hypot(*(float(each.std()) / len(each) ** 0.5 for each in losses))
    assert abs(float(losses[0].mean() - losses[1].mean())) < 4 * error < 0.05 * losses[0].mean()


def test_other_predictions_are_refused():
    model = model_of(AffineInX(), "rectified", "x0", side=2)
    with pytest.raises(UserError, match="prediction=x0: a flow predicts u, the velocity, or v"):
        RectifiedFlow(RectifiedFlowConfig(name="x"), model, None)


@pytest.mark.parametrize(
    ("config", "density"),
    [
        (TimeConfig(), lambda t: 1.0),
        (
            TimeConfig(name="mixture", share=0.3, mean=0.5, std=0.8),
            lambda t: (
                0.3
                + 0.7
                * math.exp(-0.5 * ((math.log(t / (1 - t)) - 0.5) / 0.8) ** 2)
                / (0.8 * math.sqrt(2 * math.pi) * t * (1 - t))
            ),
        ),
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
    for value in (0.05, 0.4, 0.98):
        at = torch.tensor([value], dtype=torch.float64)
        assert float(time_density(config, at)) == pytest.approx(density(value))


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


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    train_tiny(folder, images=12_800, lr=3e-3)
    return load(folder)


def flow_of(teacher, pairs) -> RectifiedFlow:
    config = RectifiedFlowConfig(name="rectified-flow", init=str(teacher.folder), pairs=str(pairs))
    context = Context(teacher.data, None, 0, torch.device("cpu"), load)
    return RectifiedFlow.from_config(config, context)


def test_a_teacher_as_a_flow_gives_the_teachers_own_samples(teacher, tmp_path):
    """dy/dw = u(y, w) of the student, by scipy in straight coordinates from the noisiest time on,
    against the teacher's own probability flow by another solver in its own."""
    generate_pairs(teacher, tmp_path / "p", count=8, sampler="ddim", steps=2, seed=5)
    student = flow_of(teacher, tmp_path / "p").student.eval().requires_grad_(False)
    assert (student.spec.path, student.spec.prediction) == ("vp-cosine", "v")
    path, one = student.path, torch.ones((), dtype=torch.float64)
    noise, label = Noise(7, torch.arange(3)).normal((1, 8, 8), "prior"), torch.tensor([1, 4, 7])

    def u(w: float, y: np.ndarray) -> np.ndarray:
        t = path.from_straight(torch.tensor(max(w, 1e-9), dtype=torch.float64))
        x = torch.from_numpy(y).view(3, 1, 8, 8) * (path.alpha(t) + path.sigma(t))
        guess = student.denoised(x.float(), t, Condition(label))
        return (guess.eps - guess.x0).double().numpy().ravel()

    y = (noise / (path.alpha(one) + path.sigma(one))).double().numpy().ravel()
    end = integrate.solve_ivp(u, (float(path.straight(one)), 0.0), y, rtol=1e-4, atol=1e-4)
    ours = torch.from_numpy(end.y[:, -1]).view(3, 1, 8, 8).float()
    setting = Setting(sampler="dpm++2m", steps=200, grid="lam")
    theirs = sample(teacher.model, setting, Noise(7, torch.arange(3)), Condition(label))
    assert float((ours - theirs).square().mean().sqrt()) < 0.02 * float(theirs.std())


def test_reflow_and_distillation_of_a_teacher(teacher, tmp_path):
    """The weights start as the teacher's, and one step from stored noise comes closer to its
    partner along the chain."""
    generate_pairs(teacher, tmp_path / "p", count=64, sampler="heun", steps=6, seed=5)
    method = flow_of(teacher, tmp_path / "p")
    for name, tensor in method.student.network.state_dict().items():
        assert torch.equal(tensor, teacher.model.network.state_dict()[name])
    batch = PairSource(tmp_path / "p", 0).draw(torch.arange(64), torch.device("cpu"))
    one = torch.ones((), dtype=torch.float64)

    def error(run) -> float:
        with torch.no_grad():
            guess = run.model.x0(run.model.path.mix(batch.x0, batch.eps, one), one, batch.condition)
            return float((guess - batch.x0).square().mean())

    runs, errors = teacher, [error(teacher)]
    for name in ("rectified-flow", "flow-distillation"):
        folder = tmp_path / name
        start = {"init": str(runs.folder), "pairs": str(tmp_path / "p")}
        train_tiny(folder, name, method=start, images=6400, lr=3e-3)
        runs = load(folder, "raw")
        errors.append(error(runs))
    assert errors[1] < 0.8 * errors[0] and errors[2] < 0.8 * errors[1], errors
