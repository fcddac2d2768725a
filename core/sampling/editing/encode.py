"""From images to the noise that the probability-flow ODE makes them of, and back (Song et al. 2021,
"Score-based generative modeling through SDEs", sec. 4.3 and app. D.4; DDIM's sec. 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from core.condition import UNCONDITIONED, Condition
from core.diffusion.parameterisations import ConsistencyFunction, Denoised
from core.diffusion.paths import Path
from core.errors import UserError
from core.model import Model
from core.sampling.denoisers import Denoiser
from core.sampling.sample import carry, denoiser_of, grid_of, sampler_of
from core.sampling.solvers import SAMPLERS, Callback
from core.sampling.solvers.runge_kutta import nearest_to_clean
from core.setting import Setting


class _FromClean:
    """A denoiser that is also asked at clean data, where some predictions have no slope and most
    networks were never trained: it then answers for the time nearest to it, w = 1e-4, and for a
    model of T discrete times 1 / T, on the ray that the same straight coordinates mean there."""

    def __init__(self, inner: Denoiser, discrete_steps: int | None):
        self.inner, self.path = inner, inner.path
        self.nearest = nearest_to_clean(self.path).time
        if discrete_steps is not None:
            self.nearest = torch.tensor(1 / discrete_steps, dtype=torch.float64)
        self.scale = _scale(self.path, self.nearest)

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        if float(self.path.sigma(t)) > 0:
            return self.inner(x, t)
        return self.inner(self.scale / _scale(self.path, t) * x, self.nearest)

    def map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        raise UserError("a map goes from noise to data, and not back")


def _scale(path: Path, t: Tensor) -> float:
    """Of the straight coordinates x / (alpha + sigma)."""
    return float(path.alpha(t) + path.sigma(t))


def check_encodes(model: Model, setting: Setting) -> None:
    """Raises UserError where there is no way from data to noise.

    There is one for whatever knows a velocity: teachers, flows, and flow maps, which know it at
    s = t. A consistency function and a generator of one step know data for each noise and no way
    back, and what a sampler draws afresh cannot be found again.
    """
    spec, sampler = model.spec, sampler_of(setting)
    if spec.discrete_steps == 1:
        raise UserError("a generator of one step knows no way from data to noise: take its teacher")
    if isinstance(spec.prediction, ConsistencyFunction) or spec.setting.sampler == "consistency":
        raise UserError(
            "a consistency model maps noise to data and knows no velocity, so no way back: encode "
            "with its teacher, whose noise it takes"
        )
    if not sampler.both_ways:
        known = ", ".join(name for name, other in SAMPLERS.items() if other.both_ways)
        raise UserError(f"sampler {setting.sampler} does not run from data to noise: take {known}")
    if setting.options.get("eta"):
        raise UserError("option eta: what was drawn afresh cannot be found again: leave eta at 0")
    if setting.threshold != "none":
        raise UserError("a threshold cannot be undone: take threshold none")


@torch.no_grad()
def encode(
    model: Model,
    setting: Setting,
    x0: Tensor,
    condition: Condition = UNCONDITIONED,
    callback: Callback | None = None,
) -> Tensor:
    """The noise [B, ...] at the first time of the setting's grid that its solver, run backwards,
    finds for x0 [B, *spec.shape] as the network sees it.

    `decode` of it gives x0 back but for the error of the solver on both ways, which falls with the
    number of steps by its order. It costs as many evaluations as sampling. Under guidance the flow
    that is followed is the guided one, whose noise is no longer normally distributed.

    Raises:
        UserError: see check_encodes; or the setting does not fit the model.
    """
    check_encodes(model, setting)
    denoiser = _FromClean(denoiser_of(model, setting, condition), model.spec.discrete_steps)
    times = grid_of(setting, model).flip(0)
    return sampler_of(setting).run(denoiser, x0, times, None, callback, **setting.options)


def decode(
    model: Model,
    setting: Setting,
    noise: Tensor,
    condition: Condition = UNCONDITIONED,
    callback: Callback | None = None,
) -> Tensor:
    """The samples [B, *spec.shape] of this noise, by a deterministic sampler.

    Raises:
        UserError: the setting does not fit the model, or its sampler draws noise of its own.
    """
    if sampler_of(setting).stochastic and setting.steps > 1 or setting.options.get("eta"):
        raise UserError(
            f"sampler {setting.label()} draws noise of its own, so no noise decides the image: "
            "take a deterministic one, or 1 step"
        )
    return carry(model, setting, noise, grid_of(setting, model), None, condition, callback)
