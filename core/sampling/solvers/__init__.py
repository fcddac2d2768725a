"""Samplers as functions: `(denoiser, noise, grid, rng, callback) -> x`, listed here by name with
their order."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.errors import UserError, nearest
from core.sampling.solvers.common import Callback, Progress, SamplerFunction
from core.sampling.solvers.consistency import jump_and_renoise
from core.sampling.solvers.ddim import ancestral, ancestral_large, ddim
from core.sampling.solvers.dpm_solver import (
    dpm_solver_2m,
    dpm_solver_2m_sde,
    dpm_solver_3m,
    dpm_solver_3m_sde,
)
from core.sampling.solvers.flow_map import flow_map
from core.sampling.solvers.ode import euler, heun
from core.sampling.solvers.runge_kutta import midpoint, rk4, rk45
from core.sampling.solvers.sde import euler_maruyama
from core.sampling.solvers.unipc import unipc

__all__ = [
    "OLD_NAMES",
    "SAMPLERS",
    "Callback",
    "Progress",
    "Sampler",
    "SamplerFunction",
    "make_sampler",
]


@dataclass(frozen=True)
class Sampler:
    """A sampler's function and what there is to know of it.

    order: of convergence, the weak order for stochastic samplers; None: no solver of the teacher's
    equation. grid: the usual spacing of the times. options: its own options with their defaults.
    both_ways: whether its steps also go from data to noise.
    """

    run: SamplerFunction
    order: int | None
    stochastic: bool
    grid: str = "time"
    options: dict[str, float] = field(default_factory=dict)
    both_ways: bool = False


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(ancestral, 1, True),
    "ddpm-large": Sampler(ancestral_large, 1, True),
    "ddim": Sampler(ddim, 1, False, options={"eta": 0.0}, both_ways=True),
    "euler": Sampler(euler, 1, False, both_ways=True),
    "heun": Sampler(heun, 2, False, both_ways=True),
    "euler-maruyama": Sampler(euler_maruyama, 1, True),
    "dpm++2m": Sampler(dpm_solver_2m, 2, False),
    "dpm++3m": Sampler(dpm_solver_3m, 3, False),
    "dpm++2m-sde": Sampler(dpm_solver_2m_sde, 1, True),
    "dpm++3m-sde": Sampler(dpm_solver_3m_sde, 1, True),
    "unipc": Sampler(unipc, 3, False),
    "consistency": Sampler(jump_and_renoise, None, True, options={"start": 1.0}),
    "flow-map": Sampler(flow_map, None, False),
    "midpoint": Sampler(midpoint, 2, False, both_ways=True),
    "rk4": Sampler(rk4, 4, False, both_ways=True),
    "rk45": Sampler(rk45, None, False, options={"tolerance": 1e-4}, both_ways=True),
}

# Names of earlier versions, which published rows carry
OLD_NAMES = {"jump": "consistency", "sde": "euler-maruyama"}


def make_sampler(name: str) -> Sampler:
    """The sampler of that name; raises UserError naming the nearest known one."""
    if name not in SAMPLERS:
        renamed = f" (it is called '{OLD_NAMES[name]}' now)" if name in OLD_NAMES else None
        raise UserError(f"unknown sampler '{name}'{renamed or nearest(name, SAMPLERS)}")
    return SAMPLERS[name]
