"""Settings in one form each, so that two that sample alike have one key."""

from __future__ import annotations

from core.sampling.solvers import SAMPLERS, make_sampler
from core.setting import Setting


def grid_name(setting: Setting) -> str:
    """The grid that the setting is sampled on; raises UserError for an unknown sampler."""
    return setting.grid or make_sampler(setting.sampler).grid


def normal(setting: Setting) -> Setting:
    """The same setting without what its sampler does anyway: its own grid, options at their
    defaults. A sampler that is not known here keeps both."""
    sampler = SAMPLERS.get(setting.sampler)
    if sampler is None:
        return setting
    options = {k: v for k, v in setting.options.items() if v != sampler.options.get(k)}
    grid = None if setting.grid == sampler.grid else setting.grid
    return setting.model_copy(update={"grid": grid, "options": options})
