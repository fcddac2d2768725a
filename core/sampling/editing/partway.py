"""A sample that begins partway, at a noised image, or is told another class on its way."""

from __future__ import annotations

import torch
from torch import Tensor

from core.condition import UNCONDITIONED, Condition
from core.errors import UserError
from core.model import Model
from core.noise import Noise
from core.sampling.sample import carry, grid_of
from core.sampling.solvers import Callback
from core.setting import Setting


def times_from(model: Model, setting: Setting, t: float) -> Tensor:
    """The times of the setting's grid from t on: t itself, and all below it. t = 1 is the grid
    itself, and t = 0 the single time 0.

    Raises:
        UserError: t is outside of [0, 1], or no time that a model of discrete times knows; or the
            setting does not fit the model.
    """
    if not 0 <= t <= 1:
        raise UserError(f"time {t:g}: from 0, clean data, to 1, pure noise")
    if setting.options.get("start", 1.0) != 1:
        raise UserError(
            "option start: this model begins below pure noise and is not stopped partway"
        )
    T, grid = model.spec.discrete_steps, grid_of(setting, model)
    if T is not None and abs(t * T - round(t * T)) > 1e-6:
        raise UserError(f"time {t:g}: this model was trained at multiples of 1 / {T} alone")
    if t == 1:
        return grid
    return torch.cat([torch.tensor([t], dtype=torch.float64), grid[grid < t]])


@torch.no_grad()
def vary(
    model: Model,
    setting: Setting,
    x0: Tensor,
    t: float,
    rng: Noise,
    condition: Condition = UNCONDITIONED,
    callback: Callback | None = None,
) -> Tensor:
    """SDEdit (Meng et al. 2022, arXiv 2108.01073, alg. 1): x0 [B, *spec.shape] with noise up to the
    time t, and sampled from there.

    The noise is that of `sample` with the same rng: at t = 1 this is that sample, of which x0 says
    nothing, and at t = 0 it is x0. It costs the evaluations of the times below t alone. Any sampler
    does, those of consistency models and of flow maps too.

    Raises:
        UserError: see times_from.
    """
    times, eps = times_from(model, setting, t), rng.normal(model.spec.shape, "prior")
    start = eps if t == 1 else model.path.mix(x0, eps.to(x0), times[0]).to(x0.dtype)
    return carry(model, setting, start, times, rng, condition, callback)


@torch.no_grad()
def switch(
    model: Model,
    setting: Setting,
    rng: Noise,
    first: Condition,
    then: Condition,
    at: float,
    callback: Callback | None = None,
) -> Tensor:
    """Samples [B, *spec.shape] that are told `first` down to the time `at`, and `then` from there:
    `at` = 1 is the sample of `then`, and 0 that of `first`.

    What is decided above `at`, the large and coarse, is the first condition's. A sampler that
    remembers its steps begins anew at the switch.

    Raises:
        UserError: see times_from.
    """
    whole, below = grid_of(setting, model), times_from(model, setting, at)
    x = rng.normal(model.spec.shape, "prior")
    if at >= float(whole[0]):
        return carry(model, setting, x, whole, rng, then, callback)
    above = torch.cat([whole[whole > at], below[:1]])
    x = carry(model, setting, x, above, rng, first, callback)
    return carry(model, setting, x, below, rng.of("after the switch"), then, callback)
