"""A model's path and prediction as diffusers' scheduler tells them, and how to get there from paths
that it does not have."""

from __future__ import annotations

import torch
from torch import Tensor

from core.diffusion.parameterisations import SingularTime
from core.diffusion.tables import BetaTable
from core.errors import UserError
from core.model import Model, ModelSpec

THEIR_PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def time_convention(steps: int) -> str:
    return f"timestep k of diffusers (0..{steps - 1}) is t = (k + 1) / {steps}; t = 0 is clean data"


def table_steps(spec: ModelSpec) -> int:
    return spec.path.steps if isinstance(spec.path, BetaTable) else 1000


def scheduler_config(spec: ModelSpec, model: Model) -> dict:
    """The arguments of a DDPMScheduler for this model's path (rectified and trigonometric ones as
    trained_betas of 1000 entries, with no signal left at the last) and prediction."""
    path, steps = spec.path, table_steps(spec)
    converted = converts(spec)
    config = {
        "num_train_timesteps": steps,
        "prediction_type": "v_prediction" if converted else THEIR_PREDICTION[spec.prediction],
        "clip_sample": False,
        "timestep_spacing": "trailing",
        "variance_type": "fixed_small",
    }
    if path == "vp-linear":
        return config | {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    if path == "vp-cosine":
        return config | {"beta_schedule": "squaredcos_cap_v2"}
    if isinstance(path, BetaTable) and path.schedule in (
        "sigmoid",
        "laplace",
    ):  # which DDIMScheduler does not know by name
        return config | {"trained_betas": path.effective_betas().tolist()}
    if isinstance(path, BetaTable) and path.schedule != "given":
        ends = {
            "beta_start": path.first,
            "beta_end": path.last,
            "rescale_betas_zero_snr": path.zero_terminal_snr,
        }
        return config | {"beta_schedule": path.schedule, **ends}
    if isinstance(path, BetaTable):
        return config | {
            "trained_betas": list(path.betas),
            "rescale_betas_zero_snr": path.zero_terminal_snr,
        }
    lam = model.path.lam(torch.arange(steps + 1, dtype=torch.float64) / steps)
    log_signal = -torch.nn.functional.softplus(-2 * lam)  # log alpha^2 once alpha^2 + sigma^2 = 1
    return config | {"trained_betas": (-torch.expm1(log_signal.diff())).tolist()}


def converts(spec: ModelSpec) -> bool:
    """Whether the network's output means nothing to diffusers as it is."""
    return spec.path == "rectified" or spec.prediction not in THEIR_PREDICTION


def conversion_table(model: Model, steps: int) -> Tensor:
    """c_in, c_x, c_F [3, steps] float64 with v = c_x z + c_F F(c_in z), for z = x / sqrt(alpha^2 +
    sigma^2).

    What the output means is affine in (F, x), so two readings of it tell all: of F = 1 alone and of
    x alone.

    Raises:
        UserError: a prediction that is singular at a timestep.
    """
    t = (torch.arange(steps, dtype=torch.float64) + 1) / steps
    c = model.path.at(t)
    norm = (c.alpha.square() + c.sigma.square()).sqrt()
    one, zero = (
        torch.ones(steps, 1, dtype=torch.float64),
        torch.zeros(steps, 1, dtype=torch.float64),
    )
    try:
        from_F, from_x = model.read(one, zero, t), model.read(zero, norm[:, None], t)
    except SingularTime as error:
        raise UserError(f"this model cannot be exported: {error}") from error
    parts = [(c.alpha * g.eps[:, 0] - c.sigma * g.x0[:, 0]) / norm for g in (from_x, from_F)]
    return torch.stack([norm, *parts])
