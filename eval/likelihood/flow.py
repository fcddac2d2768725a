"""log p of samples under a model's probability flow, by the instantaneous change of variables (Chen
et al. 2018, theorem 1; Song et al. 2021, eq. 39 and 40).

In the straight coordinates y = x / (alpha + sigma), w = sigma / (alpha + sigma) of
core/sampling/solvers/ode.py the flow is dy/dw = eps - x0, which is finite at both ends of every
path, and

    log p(x at t_min) = log N(x_1; 0, I) + D log (alpha + sigma)(1) - D log (alpha + sigma)(t_min)
                        + integral over w of div_y (eps - x0).

The prior at t = 1 is N(0, I), which every sampler here starts from: on a path with some signal left
at t = 1 the density is that of the samples, and the data's differs by as much as N(0, I) does from
their noisiest distribution (0.005 bits per dimension on vp-linear). Where eps - x0 is taken from
does not matter, so any parameterisation has a density; on the rectified path it is the velocity u
itself.

Near the data sigma goes to 0, and the score of data on a lattice or in a subspace to infinity. The
flow therefore begins at t_min > 0, with x itself in place of a sample of p at t_min, as in Song et
al. 2021 (app. C, t_min = 1e-5); the density is that of the model with so much noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from core.condition import UNCONDITIONED, Condition
from core.config import Strict
from core.counting import count_unseen
from core.errors import UserError, reason
from core.model import Model
from core.noise import Noise

FEWEST = 100  # discrete times of a model that a flow can be followed through
LONGEST = 100_000  # steps of the solver


class Integration(Strict):
    """How the flow is integrated: part of the protocol of a density."""

    trace: Literal["exact", "hutchinson"] = "hutchinson"
    """the divergence: one backward pass for each dimension, or an estimate by random probes"""
    probes: int = Field(default=1, ge=1, le=1000)
    """Rademacher probes of Hutchinson's estimate, each a backward pass"""
    tolerance: float = Field(default=1e-4, ge=1e-12, lt=1)
    """relative and absolute, of the state and of the log density per dimension"""
    t_min: float = Field(default=1e-5, ge=0, lt=1)
    """time at which the data are taken to lie"""


class LogDensity(NamedTuple):
    """log p [B], float64 in nats, of x as the network sees it. error: [B], the standard error of
    Hutchinson's estimate; None where the trace is exact, NaN where one probe leaves it unknown.
    prior: [B, ...], where the flow takes x."""

    value: Tensor
    error: Tensor | None
    prior: Tensor


def check_flow(model: Model) -> None:
    """Raises UserError for a model that has no probability flow to follow."""
    model.check_denoises()
    spec = model.spec
    if spec.discrete_steps is not None and spec.discrete_steps < FEWEST:
        raise UserError(
            f"this model knows {spec.discrete_steps} time{'s' * (spec.discrete_steps > 1)} alone: "
            f"a density needs a flow, of at least {FEWEST} times; take its teacher"
        )
    if spec.sampling is not None and spec.sampling.sampler == "consistency":
        raise UserError(
            "this model is a generator that jumps to the data, and has no density: take its teacher"
        )


def rademacher(rng: Noise, shape: tuple[int, ...], probe: int) -> Tensor:
    """[B, *shape] of -1 and 1, float64, addressed by sample and probe."""
    u = rng.uniform("probe", probe, count=math.prod(shape))
    return torch.where(u < 0.5, -1.0, 1.0).double().view(len(rng), *shape)


def units(like: Tensor) -> list[Tensor]:
    """The D unit vectors of the space of one sample of [B, ...], each for the whole batch."""
    D = math.prod(like.shape[1:])
    eye = torch.eye(D, dtype=like.dtype, device=like.device)
    return [row.view(1, *like.shape[1:]).expand_as(like) for row in eye]


class _Flow:
    """d/dw of the state: y, and of minus the log density per dimension, a column per probe or, of
    an exact trace, one."""

    def __init__(self, model: Model, condition: Condition, directions: list[Tensor], exact: bool):
        self.model, self.condition = model, condition
        self.directions, self.exact = directions, exact

    def __call__(self, w: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        model, path = self.model, self.model.path
        t = path.from_straight(w) if 0 < w else torch.zeros_like(w)
        t = t.clamp(0.0, 1.0)
        c = path.at(t)
        with torch.enable_grad():
            y = state[0].detach().requires_grad_()
            x = float(c.alpha + c.sigma) * y
            F = model.output(x, t, self.condition, autocast=False)
            guess = model.read(F, x, t)
            velocity = guess.eps - guess.x0
            parts = []
            for i, v in enumerate(self.directions):
                last = i + 1 == len(self.directions)
                (g,) = torch.autograd.grad(velocity, y, v.to(velocity.dtype), retain_graph=not last)
                parts.append((g * v).flatten(1).sum(1))
        count_unseen(len(y) * (len(self.directions) - 1))
        divergences = torch.stack(parts, 1)  # [B, directions]
        if self.exact:
            divergences = divergences.sum(1, keepdim=True)
        return velocity.detach(), divergences / y[0].numel()


def log_density(
    model: Model,
    x: Tensor,
    how: Integration,
    rng: Noise | None = None,
    condition: Condition = UNCONDITIONED,
    callback: Callable[[float], None] | None = None,
) -> LogDensity:
    """log p of x [B, ...] under the model's probability flow.

    The network runs in its own precision without autocast, the flow in float64. One forward and a
    backward to the input for each probe are counted for every evaluation. The solver is torchdiffeq's
    dopri5; its steps are shared by the batch, by its worst sample, so that a result depends on the
    batch within the tolerance.

    Args:
        rng: the address of each sample, for Hutchinson's probes; None: the trace is exact.
        callback: told after each evaluation how far the flow has come, in [0, 1].

    Raises:
        UserError: torchdiffeq is missing, a model without a flow, or one that is not finite.
        SingularTime: a prediction that says nothing at t_min, such as x0 at 0, or at t = 1, such as
            eps on a path without signal there.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise UserError(
            "densities need the library torchdiffeq: pip install torchdiffeq"
        ) from error
    check_flow(model)
    exact = how.trace == "exact"
    if not exact and rng is None:
        raise ValueError("Hutchinson's probes are addressed: give rng, the Noise of these samples")
    x, path, D = x.double(), model.path, x[0].numel()
    ends = torch.tensor([how.t_min, 1.0], dtype=torch.float64, device=x.device)
    c, ways = path.at(ends), path.straight(ends)
    scale = c.alpha + c.sigma
    for t in ends:  # refuses what the prediction cannot say at an end
        model.read(torch.zeros_like(x[:1]), x[:1], t)
    shape = tuple(x.shape[1:])
    directions = units(x) if exact else [rademacher(rng, shape, k) for k in range(how.probes)]
    flow = _Flow(model, condition, directions, exact)

    def slope(w: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        found = flow(w, state)
        if callback is not None:
            callback(float((w - ways[0]) / (ways[1] - ways[0])))
        return found

    def worst(state: tuple[Tensor, Tensor]) -> Tensor:
        y, gained = state
        return torch.maximum(y.flatten(1).square().mean(1).sqrt().max(), gained.abs().max())

    start = (x / scale[0], x.new_zeros(len(x), 1 if exact else how.probes))
    options = {
        "norm": worst,
        "dtype": torch.float64,
        "max_num_steps": LONGEST,
        "step_t": ways[1:],  # nothing is beyond the noise to step over to
    }
    tolerance = {"rtol": how.tolerance, "atol": how.tolerance}
    try:
        y, gained = odeint(slope, start, ways, method="dopri5", options=options, **tolerance)
    except AssertionError as error:
        raise UserError(
            f"the flow was not followed to a tolerance of {how.tolerance:g} ({reason(error)}): "
            "the weights have diverged, or take a larger tolerance or t_min"
        ) from error
    prior = scale[1] * y[-1]
    square = prior.flatten(1).square().sum(1)
    at_noise = -0.5 * square - 0.5 * D * math.log(2 * math.pi)
    each = at_noise[:, None] + D * (gained[-1] + scale[1].log() - scale[0].log())
    if not torch.isfinite(each).all():
        raise UserError("NaN or infinite densities: the weights have diverged")
    error = (
        each.std(1) / how.probes**0.5 if how.probes > 1 else torch.full_like(each[:, 0], torch.nan)
    )
    return LogDensity(each.mean(1), None if exact else error, prior)
