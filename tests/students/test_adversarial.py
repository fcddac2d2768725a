"""Adversarial students: their losses and penalties against formulas and finite differences, what
learns in them, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lab
from core.condition import Condition
from core.data import Batch
from core.diffusion.paths import make_path
from core.errors import UserError
from core.model import Model
from core.networks.convolutional import ConvolutionalConfig, Encoder, GeneratorConfig
from core.networks.heads import Heads, LevelHeads, WithHeads
from core.networks.unet import UNetConfig
from core.noise import Noise
from core.sampling.sample import sample
from core.training.adversarial import hinge, non_saturating, slope_penalty
from core.training.method import Progress
from students.adversarial import AdversarialConfig, AdversarialDistillation
from students.dmd2 import DMD2, DMD2Config
from students.post_training import PostTraining, PostTrainingConfig
from students.sid import SiD, SiDConfig
from tests.helpers.models import model_of
from tests.helpers.runs import weights
from tests.helpers.tiny import train_tiny

NOW = Progress(0, 0, 0.0)
CRITIC = {"critic": {"widths": [8], "blocks": 1, "patch": 2}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train_tiny(folder, images=640)
    return folder


def small(seed: int = 0, prediction: str = "v", **keys) -> Model:
    """An untrained U-Net whose output and attention are not zero."""
    torch.manual_seed(seed)
    config = UNetConfig(widths=(8, 16), blocks=1, attention=(1,), head_width=8, **keys)
    path = "rectified" if keys.get("second_time") else "vp-cosine"
    model = model_of(config.build(1, 8, 3), path, prediction, network=config, num_classes=3)
    for p in model.network.parameters():
        nn.init.normal_(p, std=0.2)
    return model.requires_grad_(False)


def batch(count: int = 6) -> Batch:
    rng = Noise(0, torch.arange(count))
    return Batch(rng.normal((1, 8, 8), "x0"), Condition(label=rng.integers(3, "label")), rng)


# ------------------------------------------------------------------------ parts


def test_the_encoder_is_the_networks_own():
    """In two halves the network computes what it does in one; its middle is read by a hook."""
    model, b = small(), batch()
    t, net = torch.full((6,), 0.4), model.network
    seen: list[Tensor] = []
    handle = net.middle[-1].register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    whole = net(b.x0, t, label=b.condition.label)
    handle.remove()
    assert torch.equal(net(b.x0, t, label=b.condition.label, features=True), seen[0])
    both = WithHeads(net)
    F, values = both(b.x0, t, label=b.condition.label, values=True)
    assert torch.equal(F, whole) and torch.equal(both(b.x0, t, label=b.condition.label), whole)
    assert values.shape == (6, 16)
    assert torch.equal(values, both.heads(seen[0], b.condition.label))
    features = model.features(b.x0, t.double(), b.condition)
    assert torch.allclose(features, seen[0], atol=1e-6)


def test_losses_are_their_formulas():
    values = torch.tensor([[-2.0, 0.5], [1.5, 0.0]])
    assert torch.allclose(hinge(values, real=True), torch.tensor([1.75, 0.5]))
    assert torch.allclose(hinge(values, real=False), torch.tensor([0.75, 1.75]))
    wanted = torch.log1p(torch.exp(-values)).mean(1)
    assert torch.allclose(non_saturating(values), wanted)


def test_the_slope_penalty_is_the_squared_slope():
    torch.manual_seed(0)
    heads = Heads(4, 3).double()
    label, x = torch.tensor([0, 2]), torch.randn(2, 4, 2, 2, dtype=torch.float64)
    asked = x.clone().requires_grad_(True)
    given = slope_penalty(heads(asked, label), asked)
    total, h = torch.zeros(2, dtype=torch.float64), 1e-5
    for i in range(16):
        step = (h * torch.eye(16, dtype=torch.float64)[i]).view(1, 4, 2, 2)
        with torch.no_grad():
            change = heads(x + step, label).sum(1) - heads(x - step, label).sum(1)
        total += (change / (2 * h)).square()
    assert torch.allclose(given.detach(), total, rtol=1e-5)
    given.sum().backward()  # and it has a gradient in the weights
    assert float(heads.first.weight.grad.abs().sum()) > 0


def test_a_network_without_an_encoder_has_no_critic_on_it():
    network = GeneratorConfig(widths=(8,), blocks=1, latent=4)
    model = model_of(network.build(1, 8, 0), "rectified", "x0", network=network)
    keys = {"name": "x", "teacher": "x"}
    for config in (DMD2Config(gan_weight=0.1, **keys), DMD2Config(divergence="js", **keys)):
        with pytest.raises(UserError, match="does not show what its encoder sees"):
            DMD2(config, model, None)


# ------------------------------------------------------------------------ adversarial terms of DMD2 and SiD


@pytest.mark.parametrize(("cls", "config"), [(DMD2, DMD2Config), (SiD, SiDConfig)])
def test_the_adversarial_term_reaches_the_student_through_the_shared_encoder(cls, config):
    """The gradient with it, less the gradient without, is that of softplus(-D) alone."""
    grads = {}
    for weight in (0.0, 0.5):
        torch.manual_seed(1)
        given = config(name="x", teacher="x", gan_weight=1e-30)  # a critic, but no term
        method = cls(given, small(), None)
        method.roles["student"].network.load_state_dict(small(3).network.state_dict())
        method.config = config(name="x", teacher="x", gan_weight=weight)
        method.roles["fake"].learns(False)
        s = method.scored(batch(), batch().condition, through=cls is SiD)
        alone = non_saturating(s.values) / (s.scale.flatten() if cls is SiD else 1)
        if weight:
            (alone.mean() * weight).backward()
            bias = method.student.network.head[2].bias
            term, bias.grad = bias.grad.clone(), None
        method.loss("student", batch(), NOW).per_sample.mean().backward()
        grads[weight] = method.student.network.head[2].bias.grad
    assert float(term.abs().max()) > 0
    assert torch.allclose(grads[0.5] - grads[0.0], term, rtol=1e-3, atol=1e-6)


def test_the_shared_critic_tells_data_from_the_student():
    """Its heads' gradient is that of the classic game, at the fake score's own noise."""
    torch.manual_seed(0)
    method = DMD2(
        DMD2Config(name="x", teacher="x", gan_weight=0.1, critic_weight=2.0), small(), None
    )
    network, b = method.roles["fake"].network, batch()
    method.loss("fake", b, NOW).per_sample.mean().backward()
    given = network.heads.last.weight.grad.clone()
    network.zero_grad()
    with torch.no_grad():
        x0 = method.generate(method.student, b.rng, b.condition, "fake-prior")
    t = 0.02 + 0.96 * b.rng.uniform("fake-time")
    path, label = make_path("vp-cosine"), b.condition.label
    made = path.mix(x0, b.rng.normal((1, 8, 8), "fake-noise"), t)
    data = path.mix(b.x0, b.rng.normal((1, 8, 8), "data-noise"), t)
    _, low = network(made, t.float(), label=label, values=True)
    _, high = network(data, t.float(), label=label, values=True)
    loss = torch.log1p(low.exp()).mean() + torch.log1p((-high).exp()).mean()
    (2.0 * loss).backward()
    assert torch.allclose(network.heads.last.weight.grad, given, rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------------------ adversarial diffusion distillation


def adversarial(**keys) -> AdversarialDistillation:
    torch.manual_seed(5)
    config = AdversarialConfig(name="add", teacher="x", **keys)
    return AdversarialDistillation(config, small(), LevelHeads((16,), 3), None)


def test_distillation_is_to_the_teachers_guess_of_the_renoised_image():
    """alpha_t ||x0 - teacher(x_t)||^2, whose target has no gradient; the critic says nothing."""
    method, b = adversarial(steps=2, distillation_weight=3.0), batch()
    for p in method.roles["critic"].network.parameters():
        nn.init.zeros_(p)
    given = method.loss("student", b, NOW).per_sample
    path = make_path("vp-cosine")
    s = 1 - b.rng.integers(2, "eps-step").double() / 2
    assert set(s.tolist()) <= {1.0, 0.5}
    x_s = path.mix(b.x0, b.rng.normal((1, 8, 8), "eps"), s)
    x0 = method.student.x0(x_s, s, b.condition)
    t = 0.02 + 0.96 * b.rng.uniform("time")
    with torch.no_grad():
        x_t = path.mix(x0, b.rng.normal((1, 8, 8), "noise"), t)
        goal = method.teacher.x0(x_t, t, b.condition)
    wanted = 3.0 * path.alpha(t) * (x0 - goal).square().flatten(1).mean(1)
    assert torch.allclose(given.double(), wanted, rtol=1e-4)


def test_time_one_has_the_share_that_it_is_given(monkeypatch):
    method, count = adversarial(steps=4, first=0.7), 2000
    seen: list[Tensor] = []
    monkeypatch.setattr(Model, "x0", lambda model, x, s, condition: seen.append(s) or x)
    rng = Noise(0, torch.arange(count))
    many = Batch(torch.zeros(count, 1, 8, 8), Condition(label=torch.zeros(count).long()), rng)
    method.denoise(method.student, many, "eps")
    shares = [float((seen[0] == s).double().mean()) for s in (1.0, 0.75, 0.5, 0.25)]
    assert shares == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.04) and sum(shares) == 1


def test_hinge_critic_learns_and_the_teacher_does_not():
    method, b = adversarial(r1=0.1), batch()
    loss = method.loss("critic", b, NOW)
    plain = adversarial(r1=0.0).loss("critic", b, NOW)
    assert (loss.per_sample > plain.per_sample).all()
    loss.per_sample.mean().backward()
    assert all(p.grad is not None for p in method.roles["critic"].network.parameters())
    assert all(p.grad is None for p in method.helpers["teacher"].parameters())
    assert all(p.grad is None for p in method.student.network.parameters())


def test_a_critic_on_a_named_extractor_is_noted_and_not_measured_in(teacher, tmp_path):
    """It sees clean images, at every level, and the run, its rows and sweeps know which."""
    options = {"teacher": str(teacher), "features": "digits-cnn"}
    trainer = train_tiny(tmp_path / "add", "add", method=options, images=64)
    critic = trainer.method.roles["critic"].network
    assert len(critic.levels) == 3 and trainer.evals == 64 * (12 + 8)  # as on the teacher's encoder
    run = lab.load(tmp_path / "add")
    assert run.critic_features == ("digits-cnn",)
    with pytest.raises(UserError, match="saw the features of 'digits-cnn'"):
        lab.evaluate(run, n=20, extractor="digits-cnn")
    with pytest.raises(UserError, match="unknown features 'digits-cn'"):
        train_tiny(tmp_path / "x", "add", method={**options, "features": "digits-cn"}, images=64)


def test_the_critic_of_several_levels_plays_a_game_on_each():
    """The loss is the sum over levels of hinges meaned over places, and the penalty that of all."""
    torch.manual_seed(0)
    levels = nn.ModuleList([nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 8, 2, stride=2)])
    seen = type("Seen", (nn.Module,), {"forward": lambda self, x: [net(x) for net in levels]})()
    critic, b = LevelHeads((4, 8), 3), batch()
    config = AdversarialConfig(name="add", teacher="x", features="some", r1=0.3)
    method = AdversarialDistillation(config, small(), critic, None, seen)
    given = method.loss("critic", b, NOW).per_sample
    with torch.no_grad():
        x0 = method.denoise(method.student, b, "critic")
    label, wanted = b.condition.label, torch.zeros(6)
    for net, head in zip(levels, critic.levels):
        real = net(b.x0).detach().requires_grad_(True)
        high, low = head(real, label), head(net(x0), label)
        wanted = wanted + (1 - high).clamp(min=0).mean(1) + (1 + low).clamp(min=0).mean(1)
        (slope,) = torch.autograd.grad(high.sum(), real)
        wanted = wanted + 0.3 * slope.square().flatten(1).sum(1)
    assert torch.allclose(given, wanted, rtol=1e-4)
    assert method.critic_features == ("some",) and method.helpers["features"] is seen


# ------------------------------------------------------------------------ GAN post-training


def post_training(init: Model, **keys) -> PostTraining:
    critic = Encoder(ConvolutionalConfig(widths=(4,), blocks=1), 1, 8, 3, 1, projection=True)
    return PostTraining(PostTrainingConfig(name="x", init="x", **keys), init, critic, None)


def test_the_generator_is_the_model_asked_once():
    b = batch()
    flow = small(prediction="mean-velocity", second_time=True)
    for model, keys, sampler in ((small(), {}, "consistency"), (flow, {}, "flow-map"),
                                 (small(), {"start": 0.7}, "consistency")):  # fmt: skip
        method = post_training(model, **keys)
        setting = method.student.spec.setting
        assert (setting.sampler, setting.steps, setting.options) == (sampler, 1, keys)
        rng, label = Noise(4, torch.arange(6)), torch.arange(6) % 3
        x0 = method.generate(method.student, rng, Condition(label=label), "prior")
        assert torch.equal(x0, sample(method.student, setting, rng, Condition(label=label)))
    with pytest.raises(UserError, match=r"start=0\.7"):
        post_training(flow, start=0.7)
    again = post_training(post_training(small(), start=0.7).student)
    assert again.start == 0.7  # a student's own start is kept
    assert b.x0.shape == (6, 1, 8, 8)


def test_frozen_convolutions_stay_and_the_rest_learns(teacher, tmp_path):
    options = {"init": str(teacher), "freeze": True, **CRITIC}
    train_tiny(tmp_path / "run", "gan-post-training", method=options, images=320)
    before, after = weights(teacher, "ema"), weights(tmp_path / "run", "raw")
    same = {name for name in before if torch.equal(before[name], after[name])}
    network = lab.load(teacher).model.network
    convolutions = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    wanted = {f"{n}.{kind}" for n in convolutions[1:-1] for kind in ("weight", "bias")}
    assert len(wanted) >= 10 and same == wanted
    # all of what it saw is in the run, and in what is distilled from it
    run = lab.load(tmp_path / "run")
    assert run.critic_features == ("pixels",)
    options = {"teacher": str(tmp_path / "run"), "gan_weight": 0.1}
    train_tiny(tmp_path / "dmd2", "dmd2", method=options, images=64)
    seen = ("pixels", "encoder of the fake score")
    assert lab.load(tmp_path / "dmd2").critic_features == seen


@pytest.mark.parametrize(
    ("name", "options", "price"),
    [
        # a student's image: itself 3, two scores 2 each; the fake score's: student 1, itself 3
        ("sid", {}, 7 + 4),
        # without gradients through the scores, once in five steps
        ("dmd2", {}, (5 * 4 + 5) / 5),
        # the fake score judges data beside the student's images, and its encoder passes gradients
        ("dmd2", {"gan_weight": 0.1, "updates": 1}, 1 + 6 + 3 + 1 + 2),
        ("sid", {"gan_weight": 0.1}, 1 + 6 + 3 + 2 + 2),
        # critic: student 1, features 2, heads 2 x 3, penalty 3; student: 3, features 2, heads 2,
        # teacher 1
        ("add", {}, 12 + 8),
    ],
)
def test_price_counts_every_pass(teacher, tmp_path, name, options, price):
    options = {"teacher": str(teacher), **options}
    trainer = train_tiny(tmp_path / name, name, method=options, images=320)
    assert trainer.evals == 320 * price


def test_bad_times_are_refused():
    with pytest.raises(ValueError, match="t_min"):
        AdversarialConfig(name="add", teacher="x", t_min=0.9, t_max=0.1)
