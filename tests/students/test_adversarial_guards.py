"""What keeps the games of several networks from diverging, each beside the same game without it:
the fake score's updates, its head start, the hinge and the penalty of slopes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from core.condition import UNCONDITIONED
from core.data import Batch
from core.diffusion.paths import expand, make_path
from core.model import Model
from core.noise import Noise
from core.training.adversarial import hinge, slope_penalty
from core.training.method import Progress
from core.training.roles import Role
from students.dmd2 import DMD2, DMD2Config
from teachers.exact import mixture_model
from tests.helpers.gaussian import MEAN, SHAPE, STD

PATH = make_path("vp-cosine")
SIZE = 16


class Centred(nn.Module):
    """One number m. As a generator of N(m, STD^2), its v at t = 1 is such that x0 = STD x + m; as a
    score it is the denoiser of that Gaussian."""

    def __init__(self, m: float, score: bool):
        super().__init__()
        self.m, self.score = nn.Parameter(torch.tensor(m, dtype=torch.float64)), score

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
        alpha, sigma = (expand(c, x) for c in (PATH.alpha(t), PATH.sigma(t)))
        if self.score:
            gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
            x0 = self.m + gain * (x - alpha * self.m)
        else:
            x0 = STD * x + self.m
        return (alpha * x - x0) / sigma


def furthest(steps: int = 50, rate: float = 0.3, fake_starts: float = 1.0, **keys) -> float:
    """The largest distance of the student's mean from the data's in the second half of a game by
    plain gradient descent, the student at this rate and the fake score at 0.02."""
    teacher = mixture_model(PATH, torch.full((1, *SHAPE), MEAN), STD * torch.ones(1), torch.ones(1))
    method = DMD2(DMD2Config(name="dmd2", teacher="exact", **keys), teacher, None)
    for name, network in (("student", Centred(1.0, False)), ("fake", Centred(fake_starts, True))):
        method.roles[name] = Role(Model(network, method.roles[name].model.spec))
    student, turn, gaps = method.student.network, 0, []
    while len(gaps) < steps:
        rng = Noise(0, torch.arange(SIZE) + SIZE * turn)
        batch = Batch(torch.full((SIZE, *SHAPE), math.nan), UNCONDITIONED, rng)
        for name in method.turn(turn):
            for other, role in method.roles.items():
                role.learns(other == name)
            method.loss(name, batch, Progress(0, 0, 0.0)).per_sample.mean().backward()
            m = method.roles[name].network.m
            with torch.no_grad():
                m -= (rate if name == "student" else 0.02) * m.grad
                m.grad = None
            if name == "student":
                gaps.append(abs(float(m) - MEAN))
        turn += 1
    assert student.m.grad is None
    return max(gaps[steps // 2 :])


def test_a_student_faster_than_its_fake_score_circles_and_more_updates_calm_it():
    """At a rate at which one update of the fake score for each of the student's lets the student
    run on past the data, eight bring it there; so does a lower rate of the student,
    in more steps."""
    fast, many, slow = (
        furthest(updates=1, rate=0.3),
        furthest(updates=8, rate=0.3),
        furthest(updates=1, rate=0.03, steps=150),
    )
    assert fast > 0.5 and many < 0.1 and slow < 0.2, (fast, many, slow)


def test_a_fake_score_that_is_not_there_yet_sends_the_student_astray():
    """With the head start, the first step is towards the data; without, it is whatever the fake
    score happens to be."""
    first = {"steps": 1, "rate": 0.3, "fake_starts": -3.0, "updates": 1}
    before = 1.0 - MEAN
    assert furthest(**first) > before  # away from the data
    assert furthest(**first, fake_first=200) < before


def test_a_hinge_critic_that_is_ahead_stops():
    """Beyond the margin it has no gradient, where the game of softplus always has one."""
    values = torch.tensor([[3.0], [1.5]], requires_grad=True)
    (hinge(values, real=True) + hinge(-values, real=False)).sum().backward()
    assert float(values.grad.abs().sum()) == 0
    inside = torch.tensor([[0.5]], requires_grad=True)
    hinge(inside, real=True).sum().backward()
    assert float(inside.grad) == -1


@pytest.mark.parametrize("several", [False, True])
def test_the_penalty_of_slopes_is_autograds_jacobian(several):
    """Of one map of features, or of the maps of several levels."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    parts = [torch.randn(3, 2).double(), torch.randn(3, 4).double()]
    asked = [p.clone().requires_grad_(True) for p in parts]
    given = slope_penalty(net(torch.cat(asked, 1)), asked if several else asked[1])
    for i in range(3):
        one = torch.cat([p[i] for p in parts])
        slope = torch.autograd.functional.jacobian(lambda x: net(x).sum(), one)
        wanted = slope.square().sum() if several else slope[2:].square().sum()
        assert float(given[i].detach()) == pytest.approx(float(wanted), rel=1e-10)
