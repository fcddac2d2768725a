"""How a diffusers scheduler samples, in options of ours; and what of it has no equal here.

Only keys that the scheduler's class takes are read. Every one of them is either understood below
or, where it is not at its default, named among the differences, so that nothing is passed over in
silence; what cannot change a sample is not named.
"""

from __future__ import annotations

import math

DDPM, DDIM, DPM, UNIPC = (
    "DDPMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
MULTISTEP = (DPM, "DEISMultistepScheduler", UNIPC)
# These divide into one interval more than they take steps. The last has no choice of spacing: it is
# always linspace.
ONE_MORE = (*MULTISTEP, "DPMSolverSinglestepScheduler")
SPACINGS = ("trailing", "leading", "linspace")
RATIO = 0.995  # of core.sampling.denoisers.dynamic_threshold

TABLE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
GRID = ("timestep_spacing", "steps_offset")
THRESHOLD = (
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)
COMMON = {*TABLE, *GRID, *THRESHOLD, "prediction_type"}
# Shifts are read with use_flow_sigmas alone, and DPM-Solver asks of variance_type only whether it
# is learned: both are refused.
UNDERSTOOD = {
    DDPM: {*COMMON, "variance_type"},
    DDIM: {*COMMON, "set_alpha_to_one"},
    "PNDMScheduler": {*COMMON, "set_alpha_to_one"},
    DPM: {
        *COMMON,
        "solver_order",
        "algorithm_type",
        "variance_type",
        "flow_shift",
        "use_dynamic_shifting",
        "time_shift_type",
    },
    UNIPC: {*COMMON, "solver_order", "flow_shift", "time_shift_type"},
}
OWN_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
LEFT_OVER = (
    "rescale_betas_zero_snr",
    "clip_sample",
    "thresholding",
)  # what would matter, were it read
# Values of other solvers that the class itself takes for its default, as from_config hands them on.
ALIASES = {
    (DPM, "solver_type"): ("logrho", "bh1", "bh2"),
    (UNIPC, "solver_type"): ("midpoint", "heun", "logrho"),
}
DPM_SAMPLERS = {
    "dpmsolver++": {1: "ddim", 2: "dpm++2m", 3: "dpm++3m"},
    "deis": {1: "ddim", 2: "dpm++2m", 3: "dpm++3m"},  # which DPM-Solver takes for dpmsolver++
    "sde-dpmsolver++": {1: "ddpm", 2: "dpm++2m-sde", 3: "dpm++3m-sde"},
}


def published_sampling(
    name: str, c: dict, defaults: dict, lam_end: float
) -> tuple[str, tuple[str, ...]]:
    """(the options of ours that repeat its sampling or come nearest, differences).

    Args:
        c: the scheduler's config, completed, of keys that its class takes; defaults: that class's
            own values.
        lam_end: log(alpha / sigma) at the last timestep; -inf where no signal is left.
    """
    sampler, differs = _sampler(name, c)
    read = UNDERSTOOD.get(name, COMMON) | _without_effect(name, c, lam_end)
    differs += [f"{key} = {c[key]!r}" for key in c if key not in read and c[key] != defaults[key]]
    grid, more = _grid(name, c, lam_end)
    threshold, others = _threshold(name, c)
    chosen = f"--sampler {sampler} " if sampler else ""
    return f"{chosen}--grid {grid} --threshold {threshold}", tuple(differs + more + others)


def left_over(name: str, config: dict, defaults: dict) -> tuple[str, ...]:
    """Keys that another scheduler's config has left here (diffusers' from_config keeps them) and
    this class does not read."""
    found = [key for key in LEFT_OVER if config.get(key) and key not in defaults]
    return tuple(f"{key} = {config[key]!r}, which {name} does not read" for key in found)


def _without_effect(name: str, c: dict, lam_end: float) -> set[str]:
    """Keys that can be anything, given the others."""
    idle = {key for (of, key), values in ALIASES.items() if of == name and c[key] in values}
    if not any(c.get(key) for key in OWN_SIGMAS):
        idle |= {"sigma_min", "sigma_max"}
    if (
        name == DPM and c["solver_order"] <= 2 and c["final_sigmas_type"] == "zero"
    ):  # a last step of first order, come what may
        idle |= {"lower_order_final", "euler_at_final"}
    if c.get("lambda_min_clipped", -math.inf) <= lam_end:
        idle |= {"lambda_min_clipped"}
    return idle


def _sampler(name: str, c: dict) -> tuple[str | None, list[str]]:
    if name == DDPM:
        return _ddpm(c)
    if name == DDIM:
        return "ddim", []
    order = c.get("solver_order")
    if name == UNIPC and order == 3:
        falls = "the order of its last two steps, which falls from 3 to 2 and 1 (ours falls in the last alone)"
        return "unipc", [f"{falls}: from 4 steps on"]
    if name == UNIPC:
        return "unipc", [f"solver_order = {order} (ours is 3): from {min(order, 2) + 2} steps on"]
    if name == DPM and (samplers := DPM_SAMPLERS.get(str(c["algorithm_type"]))):
        weighs = (
            f"solver_order = {order} (it weighs the second difference otherwise): from 4 steps on"
        )
        return samplers[min(order, 3)], [weighs] if order > 2 else []
    return None, [f"algorithm_type = {c['algorithm_type']!r}" if name == DPM else f"{name} itself"]


def _ddpm(c: dict) -> tuple[str, list[str]]:
    variance = c["variance_type"]
    if variance == "fixed_large_log":
        return "ddpm-large", [f"variance_type = {variance!r} (diffusers itself makes NaN of it)"]
    if variance != "fixed_large":
        return "ddpm", [] if variance in ("fixed_small", "fixed_small_log") else [
            f"variance_type = {variance!r}"
        ]
    ends_above = c["timestep_spacing"] == "trailing" or (
        c["timestep_spacing"] == "leading" and c["steps_offset"] > 0
    )
    return "ddpm-large", [
        "the noise that it adds in its last step, from a timestep above 0 to clean data"
    ] * ends_above


def _grid(name: str, c: dict, lam_end: float) -> tuple[str, list[str]]:
    differs, T = [], c["num_train_timesteps"]
    spacing = c.get("timestep_spacing", "linspace")
    offset = c.get("steps_offset", 0) if spacing == "leading" else 0
    grid = spacing + ("-multistep" if name in ONE_MORE and spacing != "trailing" else "")
    if offset == 1 and name not in ONE_MORE:
        grid = "leading-offset"
    elif offset:
        differs.append(f"steps_offset = {offset}")
    if name == DDIM:
        differs += _landings(spacing, T)
    if not c.get("set_alpha_to_one", True):
        differs.append(
            "set_alpha_to_one = False (its last step ends at timestep 0, ours on clean data)"
        )
    if (
        name in MULTISTEP and lam_end == -math.inf and spacing != "leading"
    ):  # leading stays below the last timestep
        what = (
            "2^-12 in place of alpha = 0"
            if c.get("rescale_betas_zero_snr")
            else "a division by alpha = 0"
        )
        differs.append(f"{what} at timestep {T - 1}")
    return grid, differs


def _landings(spacing: str, T: int) -> list[str]:
    """DDIMScheduler steps T // N timesteps down, whatever timestep it looks at next."""
    if spacing == "linspace":
        return [
            f"DDIMScheduler's steps of {T} // N between linspace times, which land elsewhere than it looks next"
        ]
    if spacing == "trailing":
        return [
            f"where the number of steps does not divide the timesteps ({T}), that its steps land elsewhere than it looks next"
        ]
    return []


def _threshold(name: str, c: dict) -> tuple[str, list[str]]:
    static = "static-x0" if name == DDIM else "static"
    if c.get("thresholding"):
        ceiling, ratio = c["sample_max_value"], c["dynamic_thresholding_ratio"]
        if ceiling == 1:  # dynamic thresholding between 1 and 1
            return static, []
        if ceiling < 1:
            return "none", [f"thresholding = True with sample_max_value = {ceiling:g}, below 1"]
        if name == DDIM:
            what = f"thresholding = True, dynamic_thresholding_ratio = {ratio:g}, sample_max_value = {ceiling:g}"
            return "none", [f"{what} (it keeps eps, our dynamic thresholding makes it anew)"]
        bounded = f"dynamic thresholding with sample_max_value = {ceiling:g} (ours has no ceiling)"
        other = f"dynamic_thresholding_ratio = {ratio:g} (ours is {RATIO})"
        return "dynamic", [bounded] * math.isfinite(ceiling) + [other] * (ratio != RATIO)
    if not c.get("clip_sample"):
        return "none", []
    if c["clip_sample_range"] != 1:
        return "none", [f"clip_sample_range = {c['clip_sample_range']:g} (ours clips at 1)"]
    return static, []
