"""Settings in one form each, so that two that sample alike have one key."""

from __future__ import annotations

from core.sampling.solvers import SAMPLERS, make_sampler
from core.setting import Setting


def grid_name(setting: Setting) -> str:
    """The grid that the setting is sampled on; raises UserError for an unknown sampler."""
    return setting.grid or make_sampler(setting.sampler).grid


def normal(setting: Setting) -> Setting:
    """The same setting without what it does anyway: an interval of guidance that is off or acts at
    all times, its sampler's own grid, options at their defaults. A sampler that is not known here
    keeps the last two."""
    if setting.guidance_scale == 1.0 or setting.guidance_interval == (0, 1):
        setting = setting.model_copy(update={"guidance_interval": None})
    sampler = SAMPLERS.get(setting.sampler)
    if sampler is None:
        return setting
    options = {k: v for k, v in setting.options.items() if v != sampler.options.get(k)}
    grid = None if setting.grid == sampler.grid else setting.grid
    return setting.model_copy(update={"grid": grid, "options": options})
