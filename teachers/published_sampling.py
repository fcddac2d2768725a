"""How a diffusers scheduler samples, in options of ours; and what of it has no equal here.

Only keys that the scheduler's class takes are read. Every one of them is either understood below or, where it is not at its
default, named among the differences, so that nothing is passed over in silence.
"""

from __future__ import annotations

MULTISTEP = ("DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler")
TABLE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
GRID = ("timestep_spacing", "steps_offset", "rescale_betas_zero_snr")
THRESHOLD = ("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value")
UNDERSTOOD = {
    "DDPMScheduler": {*TABLE, *GRID, *THRESHOLD, "variance_type"},
    "DDIMScheduler": {*TABLE, *GRID, *THRESHOLD, "set_alpha_to_one"},
    "DPMSolverMultistepScheduler": {*TABLE, *GRID, *THRESHOLD, "solver_order", "algorithm_type", "variance_type"},  # if learned
    "UniPCMultistepScheduler": {*TABLE, *GRID, *THRESHOLD, "solver_order"},
}
LEFT_OVER = ("rescale_betas_zero_snr", "clip_sample", "thresholding")  # what would matter, were it read
RATIO = 0.995  # of core.denoisers.dynamic_threshold


def published_sampling(name: str, c: dict, defaults: dict) -> tuple[str, tuple[str, ...]]:
    """(options, differences).

    Args:
        c: the scheduler's config, completed, of keys that its class takes; defaults: that class's own values.
    """
    sampler, differs = _sampler(name, c)
    known = UNDERSTOOD.get(name)
    differs += [f"{key} = {c[key]!r}" for key in c if known and key not in known and c[key] != defaults[key]]
    grid, more = _grid(name, c, sampler)
    threshold, others = _threshold(name, c)
    chosen = f"--sampler {sampler} " if sampler else ""
    return f"{chosen}--grid {grid} --threshold {threshold}", tuple(differs + more + others)


def left_over(name: str, config: dict, defaults: dict) -> tuple[str, ...]:
    """Keys that another scheduler's config has left here (diffusers' from_config keeps them) and this class does not read."""
    found = [key for key in LEFT_OVER if config.get(key) and key not in defaults]
    return tuple(f"{key} = {config[key]!r}, which {name} does not read" for key in found)


def _sampler(name: str, c: dict) -> tuple[str | None, list[str]]:
    if name == "DDPMScheduler":
        kind = c["variance_type"]
        large = kind in ("fixed_large", "fixed_large_log")
        return "ddpm-large" if large else "ddpm", [f"variance_type = {kind!r}"] if kind == "fixed_large_log" else []
    if name == "DDIMScheduler":
        return "ddim", []
    if name == "UniPCMultistepScheduler" and c["solver_order"] == 3:
        return "unipc", ["the order of its last two steps, which falls from 3 to 2 and 1 (ours falls in the last alone)"]
    if name == "UniPCMultistepScheduler":
        return "unipc", [f"solver_order = {c['solver_order']} (ours is 3)"]
    sampler = None
    if name == "DPMSolverMultistepScheduler" and c["solver_order"] == 2:
        sampler = {"dpmsolver++": "dpm++2m", "sde-dpmsolver++": "dpm++2m-sde"}.get(c["algorithm_type"])
    return sampler, [] if sampler else [f"{name} itself"]


def _grid(name: str, c: dict, sampler: str | None) -> tuple[str, list[str]]:
    differs = []
    spacing, offset = c.get("timestep_spacing", "leading"), c.get("steps_offset", 0)
    grid = spacing + ("-multistep" if name in MULTISTEP and spacing != "trailing" else "")
    if spacing == "leading" and offset:
        differs += [f"steps_offset = {offset}"] if offset != 1 or name in MULTISTEP else []
        grid = "leading-offset" if offset == 1 and name not in MULTISTEP else grid
    if name == "DDIMScheduler" and spacing == "linspace":
        differs.append("DDIMScheduler's steps between linspace times, which land elsewhere than it looks next")
    if name == "DDIMScheduler" and spacing == "trailing":
        differs.append(
            "where the number of steps does not divide the timesteps, that its steps land elsewhere than it looks next"
        )
    if name in ("DDIMScheduler", "PNDMScheduler") and not c.get("set_alpha_to_one", True):
        differs.append("set_alpha_to_one = False (its last step ends at timestep 0, ours on clean data)")
    if sampler == "ddpm-large" and (spacing == "trailing" or offset):
        differs.append("the noise that it adds in its last step, from a timestep above 0 to clean data")
    return grid, differs


def _threshold(name: str, c: dict) -> tuple[str, list[str]]:
    clips, dynamic = bool(c.get("clip_sample")), bool(c.get("thresholding"))
    static = "static-x0" if name == "DDIMScheduler" else "static"
    if dynamic and c["sample_max_value"] > 1:
        if name == "DDIMScheduler":
            return "none", ["thresholding = True (it keeps eps, our dynamic thresholding makes it anew)"]
        differs = [f"dynamic thresholding with sample_max_value = {c['sample_max_value']:g} (ours has no ceiling)"]
        if c["dynamic_thresholding_ratio"] != RATIO:
            differs.append(f"dynamic_thresholding_ratio = {c['dynamic_thresholding_ratio']:g} (ours is {RATIO})")
        return "dynamic", differs
    if clips and not dynamic and c["clip_sample_range"] != 1:
        return "none", [f"clip_sample_range = {c['clip_sample_range']:g} (ours clips at 1)"]
    return (static if dynamic or clips else "none"), []
