"""A diffusers scheduler's config -> our path and prediction, and the way of sampling it was
published with in our options."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from core.diffusion.parameterisations import Prediction
from core.diffusion.paths import make_path
from core.diffusion.tables import BetaTable
from core.errors import UserError
from core.networks.diffusers import diffusers_library
from teachers.diffusers_format.sampling import MULTISTEP, SPACINGS, left_over, published_sampling

PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
# All of these sample networks that were trained on a table of betas; how they solve is theirs, and
# ours to choose anew.
DDPM_FAMILY = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    *MULTISTEP,
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
)
WITH_ENDS = (
    "linear",
    "scaled_linear",
    "sigmoid",
)  # the schedules that beta_start and beta_end are read for
WORDS = {"prediction_type": tuple(PREDICTIONS), "timestep_spacing": SPACINGS}


@dataclass(frozen=True)
class Schedule:
    """What a scheduler's config says of the model. sampling: options of ours that repeat its
    sampling, in words; differs: what of its sampling has no equal here; left_over: keys of another
    scheduler's that its class does not read."""

    path: str | BetaTable
    prediction: Prediction
    steps: int
    sampling: str
    differs: tuple[str, ...]
    left_over: tuple[str, ...] = ()


def _refuse(file: Path, key: str, value: Any, reason: str) -> UserError:
    return UserError(f"{file}: {key} = {value!r}: {reason}")


def read_schedule(config: dict, file: Path) -> Schedule:
    """The schedule in a scheduler's config, completed by the defaults of its class; `file` is for
    messages.

    Raises:
        UserError: not a DDPM table (flow matching, EDM, VE), a learned variance, or values that
            make no path.
    """
    name = config.get("_class_name")
    if name not in DDPM_FAMILY:
        raise _refuse(
            file,
            "_class_name",
            name,
            "only schedulers of DDPM tables are read, not flow matching, EDM or variance-exploding ones; known: "
            f"{', '.join(DDPM_FAMILY)}",
        )
    parameters = inspect.signature(getattr(diffusers_library(str(file)), name).__init__).parameters
    defaults = {
        key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty
    }
    c = defaults | {key: value for key, value in config.items() if key in defaults}
    if config.get("predict_epsilon") is False and "prediction_type" not in config:
        raise _refuse(
            file,
            "predict_epsilon",
            False,
            'a key of old versions of diffusers: write "prediction_type": "sample"',
        )
    if c.get("use_flow_sigmas") or c["prediction_type"] == "flow_prediction":
        raise _refuse(
            file,
            "prediction_type",
            c["prediction_type"],
            "flow matching in diffusers' clothes is not read",
        )
    if c.get("timestep_type") == "continuous":
        raise _refuse(
            file,
            "timestep_type",
            "continuous",
            "a network that is told sigmas (EDM) is not read, only timesteps",
        )
    _check_values(name, c, defaults, file)
    if str(c.get("variance_type") or "").startswith("learned"):
        raise _refuse(
            file,
            "variance_type",
            c["variance_type"],
            "a learned variance would be ignored here; take a checkpoint of fixed variance",
        )
    path = _path(c, file)
    lam_end = float(
        (make_path(path) if isinstance(path, str) else path.build()).lam(
            torch.tensor(1.0, dtype=torch.float64)
        )
    )
    if lam_end == -math.inf and c["prediction_type"] == "epsilon":
        key = "rescale_betas_zero_snr" if c.get("rescale_betas_zero_snr") else "trained_betas"
        raise _refuse(
            file,
            key,
            c[key] if key != "trained_betas" else "[..., 1.0]",
            "with prediction_type epsilon the network says nothing at pure noise, where sampling starts: prediction_type must "
            "be v_prediction or sample",
        )
    sampling, differs = published_sampling(name, c, defaults, lam_end)
    prediction, unread = PREDICTIONS[c["prediction_type"]], left_over(name, config, defaults)
    return Schedule(path, prediction, c["num_train_timesteps"], sampling, differs, unread)


def _check_values(name: str, c: dict, defaults: dict, file: Path) -> None:
    """Refuses values of another type than diffusers would work with, where they are read at all."""
    for key, words in WORDS.items():
        if key in c and c[key] not in words:
            raise _refuse(file, key, c[key], f"must be one of {', '.join(words)}")
    numbers = {"num_train_timesteps": int, "solver_order": int, "lambda_min_clipped": float}
    if c["trained_betas"] is None and c["beta_schedule"] in WITH_ENDS:
        numbers |= {"beta_start": float, "beta_end": float}
    if c.get("timestep_spacing") == "leading":
        numbers["steps_offset"] = int
    if c.get("thresholding"):
        numbers |= {"dynamic_thresholding_ratio": float, "sample_max_value": float}
    elif c.get("clip_sample"):
        numbers["clip_sample_range"] = float
    for key, kind in numbers.items():
        if key in c and (isinstance(c[key], bool) or not isinstance(c[key], (int, kind))):
            whole = ", a whole one" if kind is int else ""
            raise _refuse(
                file,
                key,
                c[key],
                f"must be a number{whole}; the default of {name} is {defaults[key]}",
            )
    if c.get("solver_order", 1) < 1:
        raise _refuse(file, "solver_order", c["solver_order"], "must be at least 1")


def _path(c: dict, file: Path) -> str | BetaTable:
    steps, schedule, zero = (
        c["num_train_timesteps"],
        c["beta_schedule"],
        bool(c.get("rescale_betas_zero_snr")),
    )
    betas = c["trained_betas"]
    if betas is not None and not isinstance(betas, list):
        raise _refuse(
            file,
            "trained_betas",
            betas,
            "must be a list of numbers, or null for a schedule by name",
        )
    if bad := [b for b in betas or () if isinstance(b, bool) or not isinstance(b, (int, float))]:
        raise _refuse(
            file,
            "trained_betas",
            f"[..., {bad[0]!r}, ...]",
            "must be a list of numbers, or null for a schedule by name",
        )
    if betas is None and schedule not in SCHEDULES:
        raise _refuse(
            file,
            "beta_schedule",
            schedule,
            f"must be one of {', '.join(SCHEDULES)}, or give trained_betas",
        )
    if betas is None and not zero and steps == 1000:
        if schedule == "linear" and (c["beta_start"], c["beta_end"]) == (1e-4, 0.02):
            return "vp-linear"
        if schedule == "squaredcos_cap_v2":
            return "vp-cosine"
    if betas is not None:
        given = {"schedule": "given", "betas": tuple(map(float, betas))}
    else:
        ends = (
            {"first": float(c["beta_start"]), "last": float(c["beta_end"])}
            if schedule in WITH_ENDS
            else {}
        )
        given = {"schedule": schedule, **ends}
    try:
        return BetaTable(steps=steps, zero_terminal_snr=zero, **given)
    except ValidationError as error:
        key = "trained_betas" if betas is not None else "beta_schedule"
        shown = f"[{len(betas)} numbers]" if betas is not None else schedule
        raise _refuse(
            file,
            key,
            shown,
            str(error.errors()[0].get("ctx", {}).get("error", error.errors()[0]["msg"])),
        ) from error
