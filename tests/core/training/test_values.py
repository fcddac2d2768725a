"""The numbers that decide a short training, one by one: rate, clipping, the average's horizon, the
share of null labels, each weighting of a method's loss, bfloat16."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from core.condition import Condition
from core.data import Batch
from core.noise import Noise
from core.training.method import Progress, drop_labels
from core.training.roles import AverageConfig, OptimizerConfig, Role
from flows.rectified import RectifiedFlow, RectifiedFlowConfig
from students.consistency import Consistency, ConsistencyConfig
from students.progressive import Progressive, ProgressiveConfig
from teachers.ddpm import DDPM, DDPMConfig
from tests.helpers.models import model_of
from tests.helpers.runs import weights
from tests.helpers.tiny import metrics_of, train_tiny


def test_logged_rate_at_start_in_warm_up_and_at_the_end(tmp_path):
    """10 steps of 64; 256 images of warm-up. A step's rate is that of its first image."""
    log = {"metrics_every": 64, "checkpoint_every": 10**9}
    optimizer = {"warmup": 256, "decay": "linear"}
    train_tiny(tmp_path / "run", images=640, lr=0.5, optimizer=optimizer, log=log)
    rates = [line["lr"] for line in metrics_of(tmp_path / "run")]
    rising = [1 / 256, 65 / 256, 129 / 256, 193 / 256]
    known = [0.5 * warm * (1 - k / 10) for k, warm in enumerate([*rising, 1, 1, 1, 1, 1, 1])]
    assert rates == pytest.approx(known)


@pytest.mark.parametrize(
    ("decay", "shares"),
    [("constant", (1, 1, 1)), ("linear", (1, 0.5, 0)), ("cosine", (1, 0.5, 0))],
)
def test_rate_of_each_decay(decay, shares):
    role = begun(nn.Linear(2, 1), OptimizerConfig(lr=0.1, decay=decay))
    for fraction, share in zip((0.0, 0.5, 1.0), shares, strict=True):
        role.step(1000, fraction)
        assert role.rate == pytest.approx(0.1 * share, abs=1e-12)
        assert role.optimizer.param_groups[0]["lr"] == role.rate
    role.step(1000, 1 / 3)
    if decay == "cosine":
        assert role.rate == pytest.approx(0.075)


def begun(network: nn.Module, optimizer: OptimizerConfig, batch_size: int = 1, **average) -> Role:
    role = Role(network)
    role.begin(optimizer, AverageConfig(**average), batch_size)
    return role


@pytest.mark.parametrize(
    ("clip", "gradient", "seen"), [(1.0, 50.0, 1.0), (3.0, 50.0, 3.0), (1.0, 0.5, 0.5), (0, 50, 50)]
)
def test_norm_of_the_gradient_that_the_optimiser_gets(clip, gradient, seen):
    network = nn.Linear(2, 2)
    role = begun(network, OptimizerConfig(clip=clip))
    norms = []

    def look(*_) -> None:
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters())))

    role.optimizer.register_step_pre_hook(look)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, gradient / 6**0.5)  # of 6 numbers
    before = role.step(0, 0.0)
    assert norms == pytest.approx([seen], rel=1e-4)
    assert float(before) == pytest.approx(gradient)


@pytest.mark.parametrize(("gradient", "value"), [(1.0, math.nan), (math.inf, 1.0), (math.nan, 1.0)])
def test_nothing_changes_where_a_loss_or_a_gradient_is_not_finite(gradient, value):
    role = begun(nn.Linear(3, 2), OptimizerConfig(), 4, half_life=4)
    before = [*role.network.state_dict().values(), *role.average().state_dict().values()]
    before = [tensor.clone() for tensor in before]
    for parameter in role.network.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    assert role.step(0, 0.0, torch.tensor([0.5, value])) is None
    after = [*role.network.state_dict().values(), *role.average().state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in role.network.parameters())


def weights_of_the_past(role: Role, steps: int) -> torch.Tensor:
    """[steps] what each step's weights make of the average, the last one first: from an average
    over weights that are 1 at one step and 0 at all others. One coordinate a step."""
    with torch.no_grad():
        for k in range(steps):
            role.network.weight.copy_(nn.functional.one_hot(torch.tensor([k]), steps).float())
            role.step(0, 0.0)
    return role.average().weight[0].flip(0).double()


def median_age(past: torch.Tensor) -> float:
    """Steps of which the weights are half of the average, interpolated in the logarithm of what is
    left, as an exponential average falls."""
    left = torch.cat([torch.ones(1), 1 - past.cumsum(0)])
    k = int((left > 0.5).sum())
    before, after = float(left[k - 1].log()), float(left[k].log())
    return k - 1 + (before - math.log(0.5)) / (before - after)


@pytest.mark.parametrize(
    ("steps", "half_life", "power"),
    [(300, 40.0, 2 / 3), (300, 40.0, None), (60, 1e6, 2 / 3), (2, 40.0, 2 / 3), (1, 40.0, 2 / 3)],
)
def test_the_half_life_that_runs_and_rows_name_is_the_true_one(steps, half_life, power):
    """In the warm-up, too, where the configured one is a cap. The second update has the decay 1 -
    2^(-2/3) = 0.37, which falls to a half in 0.697 of a step."""
    role = begun(nn.Linear(steps, 1), OptimizerConfig(), 4, half_life=half_life, power=power)
    past = weights_of_the_past(role, steps)
    if steps > 2:
        assert role.half_life() == pytest.approx(4 * median_age(past), rel=1e-3)
    else:
        assert role.half_life() == pytest.approx({2: 4 * 0.697, 1: 4.0}[steps], rel=1e-3)
    if steps == 300:
        assert role.half_life() == pytest.approx(half_life, rel=1e-3)


def test_half_life_of_a_stage_begins_anew():
    role = begun(nn.Linear(3, 1), OptimizerConfig(), 4, half_life=1e6, power=None)
    assert role.half_life() == 0
    for _ in range(3):
        role.step(0, 0.0)
    assert role.half_life() == 12  # the weights that it began with are most of it
    role.begin_stage()
    assert role.half_life() == 0


@pytest.mark.parametrize(("steps", "power"), [(300, 2 / 3), (300, None)])
def test_half_of_an_average_is_what_its_half_life_says(steps, power):
    """After the warm-up: a half-life of 40 images in batches of 4 is 10 steps."""
    role = begun(nn.Linear(steps, 1), OptimizerConfig(), 4, half_life=40.0, power=power)
    past = weights_of_the_past(role, steps)
    assert 4 * median_age(past) == pytest.approx(40, rel=1e-3)
    assert float(past.sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_share_of_null_labels(share):
    n, null = 20_000, 3
    label = torch.arange(n) % null
    batch = Batch(torch.zeros(n, 1), Condition(label), Noise(0, torch.arange(n)))
    given = drop_labels(batch, share, null).label
    dropped = given == null
    assert torch.equal(given[~dropped], label[~dropped])
    tolerance = 4 * math.sqrt(share * (1 - share) / n)
    for k in range(null):
        assert abs(float(dropped[label == k].float().mean()) - share) <= 2 * tolerance


class Seen(nn.Module):
    """Predicts zero and notes the labels that it was given."""

    def __init__(self):
        super().__init__()
        self.scale, self.labels = nn.Parameter(torch.zeros(())), []

    def forward(self, x, t, r=None, label=None):
        self.labels.append(label)
        return self.scale * x


BATCH, CLASSES = 4000, 3
GRIDS = {"side": 2, "num_classes": CLASSES}


def batch_of(rng_seed: int = 0) -> Batch:
    rng = Noise(rng_seed, torch.arange(BATCH))
    label = torch.arange(BATCH) % CLASSES
    return Batch(0.5 * rng.normal((1, 2, 2), "data"), Condition(label), rng)


@pytest.mark.parametrize(
    ("cls", "config", "path", "kind"),
    [(DDPM, DDPMConfig, "vp-cosine", "v"), (RectifiedFlow, RectifiedFlowConfig, "rectified", "u")],
)
def test_methods_drop_the_share_of_labels_that_they_are_told(cls, config, path, kind):
    method = cls(config(name="x", label_dropout=0.25), model_of(Seen(), path, kind, **GRIDS), None)
    method.loss("student", batch_of(), Progress(0, 0, 0.0))
    (labels,) = method.student.network.labels
    assert abs(float((labels == CLASSES).float().mean()) - 0.25) < 0.03


def snr(t: torch.Tensor) -> torch.Tensor:
    """Of the trigonometric path."""
    return torch.tan(0.5 * math.pi * t).square().reciprocal()


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("simple", lambda t: torch.ones_like(t)),
        ("min-snr", lambda t: snr(t).clamp(max=2.0) / (1 + snr(t))),
        ("truncated-snr", lambda t: snr(t).clamp(min=1.0) / (1 + snr(t))),
    ],
)
def test_teachers_loss_has_each_weighting(name, weight):
    """Against the unweighted loss of the same batch; v's error is 1 / (1 + SNR) of x0's in
    squares, where alpha^2 + sigma^2 = 1."""
    losses = []
    for weighting in ("simple", name):
        model = model_of(Seen(), "trigonometric", "v", **GRIDS)
        method = DDPM(DDPMConfig(name="ddpm", weight=weighting, gamma=2.0), model, None)
        losses.append(method.loss("student", batch_of(), Progress(0, 0, 0.0)))
    plain, weighted = losses
    expected = plain.per_sample * weight(plain.t).float()
    torch.testing.assert_close(weighted.per_sample, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "squared", "huber"),
    [
        ("uniform", lambda t, s: torch.ones_like(t), lambda t, s: torch.ones_like(t)),
        ("inverse-gap", lambda t, s: 1 / (t - s), lambda t, s: 1 / (t - s)),
        # c_out is sigma on this path
        (
            "output",
            lambda t, s: torch.sin(0.5 * math.pi * t) ** -2,
            lambda t, s: 1 / torch.sin(0.5 * math.pi * t),
        ),
    ],
)
def test_consistency_has_each_weighting_and_distance(name, squared, huber):
    """A student of zeros and a teacher of zeros: the difference of their x0 is known."""
    for distance, weight in (("squared", squared), ("pseudo-huber", huber)):
        model = model_of(Seen(), "trigonometric", "v", **GRIDS)
        options = {"steps_start": 4, "steps_end": 4, "solver": "euler", "grid": "quadratic"}
        config = ConsistencyConfig(
            name="x", teacher="x", distance=distance, weight=name, huber=0.3, **options
        )
        batch = batch_of()
        loss = Consistency(config, model, None).loss("student", batch, Progress(0, 0, 0.0))
        t = loss.t
        s = (t.sqrt() - 0.25).square()
        cos, sin = (f(0.5 * math.pi * t).view(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
        x = cos * batch.x0 + sin * batch.rng.normal((1, 2, 2), "eps")
        # F = 0: x0 = cos x and eps = sin x, so the DDIM step turns x by the angle between t and s
        cos_s = torch.cos(0.5 * math.pi * s).view(-1, 1, 1, 1)
        turned = torch.cos(0.5 * math.pi * (t - s)).view(-1, 1, 1, 1) * x
        squares = (cos * x - cos_s * turned).square().flatten(1).sum(1)
        plain = squares / 4 if distance == "squared" else (squares + 0.36).sqrt() - 0.6
        expected = (plain * weight(t, s)).float()
        torch.testing.assert_close(loss.per_sample, expected, rtol=2e-3, atol=1e-5)


def test_progressive_distillation_has_the_truncated_snr():
    losses = {}
    for weighting in ("simple", "truncated-snr"):
        model = model_of(Seen(), "trigonometric", "v", **GRIDS)
        config = ProgressiveConfig(name="x", teacher="x", weight=weighting, start_steps=4)
        method = Progressive(config, model, None)
        losses[weighting] = method.loss("student", batch_of(), Progress(0, 0, 0.0))
    t = losses["simple"].t
    expected = losses["simple"].per_sample * (snr(t).clamp(min=1.0) / (1 + snr(t))).float()
    torch.testing.assert_close(losses["truncated-snr"].per_sample, expected, rtol=1e-4, atol=1e-6)
    assert sorted(set(t.tolist())) == [0.25, 0.5, 0.75, 1.0]


def test_training_with_autocast_runs_the_network_in_bfloat16(tmp_path):
    """And keeps weights and losses in float32; its result is that of float32 to a percent."""
    from core.networks.unet import UNet

    seen, forward = set(), UNet.forward
    for autocast in (False, True):

        def look(self, x, *rest, **named):
            result = forward(self, x, *rest, **named)
            seen.add((torch.is_autocast_enabled("cpu"), result.dtype))
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(UNet, "forward", look)
            model = {"autocast": autocast}
            log = {"metrics_every": 640}
            train_tiny(tmp_path / str(autocast), images=640, model=model, log=log)
        inside = {(False, torch.float32), (True, torch.bfloat16)}
        assert seen >= {(autocast, torch.bfloat16 if autocast else torch.float32)}
        assert seen <= inside
    full, half = (weights(tmp_path / name, "raw") for name in ("False", "True"))
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    assert any(not torch.equal(full[name], half[name]) for name in full)
    losses = [metrics_of(tmp_path / name)[-1]["loss"] for name in ("False", "True")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.01)
