"""What all students share: a trained teacher to start from."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.condition import Condition
from core.data import Batch, ImageSource
from core.diffusion.parameterisations import ConsistencyFunction
from core.diffusion.paths import expand
from core.errors import UserError
from core.model import Model, ModelSpec
from core.networks.dropout import same_dropout
from core.noise import Noise
from core.runs import Run
from core.training.method import (
    Context,
    Method,
    MethodConfig,
    images_and_spec,
    new_model,
    training_data,
)

Solver = Literal["euler", "heun"]


class AskedTimesConfig(MethodConfig):
    """The keys of methods that ask the teacher of what the student made, noised."""

    t_min: float = Field(default=0.02, ge=0, lt=1)
    """least time at which the teacher is asked"""
    t_max: float = Field(default=0.98, gt=0, le=1)
    """largest such time"""

    @model_validator(mode="after")
    def _times(self) -> AskedTimesConfig:
        if not self.t_min < self.t_max:
            raise ValueError(f"t_min={self.t_min:g} must be below t_max={self.t_max:g}")
        return self

    def draw_times(self, teacher: Model, rng: Noise, stream: str) -> Tensor:
        """[B] uniform in [t_min, t_max], or the nearest times that the teacher knows."""
        T = teacher.spec.discrete_steps
        t = self.t_min + (self.t_max - self.t_min) * rng.uniform(stream)
        return t if T is None else (t * T).round().clamp(1, T) / T


def load_teacher(folder: str, context: Context, steps: int | None = None) -> Run:
    """The teacher's averaged weights; steps: those that it keeps for sampling in so many steps.

    Raises:
        UserError: the config describes a model of its own, though a student copies its teacher's.
    """
    if context.model is not None:
        raise UserError(
            "a student copies its teacher's network and path: remove the section 'model' from its "
            "config"
        )
    return context.load(folder, "ema", context.device, steps)


def student_source(teacher: Run, context: Context) -> ImageSource:
    """The student's images; raises UserError where they are not of the teacher's kind."""
    data, spec = training_data(context, teacher), teacher.spec
    if (data.channels, data.side) != (spec.channels, spec.side):
        raise UserError(
            f"data '{context.data.name}' is {data.channels}x{data.side}x{data.side}, but the "
            f"teacher {teacher.folder} was trained on {spec.channels}x{spec.side}x{spec.side}"
        )
    if spec.num_classes and spec.num_classes != data.num_classes:
        raise UserError(
            f"data '{context.data.name}' has {data.num_classes} classes, but the teacher "
            f"{teacher.folder} knows {spec.num_classes}"
        )
    return ImageSource(data.seen_by(spec.num_classes, spec.text), context.seed)


def supervised_by(method: Method, run: Run) -> None:
    """Notes in the method who taught it, and what the critics saw that had taught the teacher."""
    method.teacher_name = run.name
    features = (*run.critic_features, *method.critic_features)
    method.critic_features = tuple(dict.fromkeys(features))


def trainable_copy(teacher: Model, dropout: float, **changes: Any) -> Model:
    """A copy of the teacher's network to be trained at this rate of dropout, with these values of
    its spec changed. It is given labels alone, so its null label stays untrained."""
    network = copy.deepcopy(teacher.network).train().requires_grad_(True)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    shape = teacher.spec.network.with_dropout(dropout)
    given = {"null_trained": False, "network": shape, **changes}
    return teacher.with_network(network, **given)


def with_guidance(batch: Batch, spec: ModelSpec) -> Batch:
    """The batch with a weight of guidance for each sample, uniform over the range that a network of
    this spec is told, if it is told any."""
    if spec.guidance is None:
        return batch
    low, high = spec.guidance
    drawn = low + (high - low) * batch.rng.uniform("guidance")
    return batch._replace(condition=batch.condition._replace(guidance=drawn.float()))


def check_not_told(spec: ModelSpec) -> None:
    """Raises UserError for a network that is told the weight of guidance, where a method learns
    from images that say nothing of it."""
    if spec.guidance is not None:
        raise UserError(
            "this model is told the weight of guidance, which images do not show: distil it with a "
            "method that asks it as a teacher"
        )


def consistency_function_of(spec: ModelSpec) -> ConsistencyFunction:
    """The consistency function that a denoiser of this spec is the first guess of: F stays what it
    is, and the guess of x0 is x at t = 0 for eps, v and u. On a variance-preserving path v is the
    paper's function with standard deviation 1.

    Raises:
        UserError: F is x0 or a mean velocity, which have no such boundary.
    """
    if isinstance(spec.prediction, ConsistencyFunction):
        return spec.prediction
    if spec.prediction not in ("eps", "v", "u"):
        raise UserError(
            f"prediction {spec.prediction} has no boundary at t = 0, which a consistency function "
            "needs: take a model that predicts v, eps or u (the method 'consistency' turns x0 "
            "into v)"
        )
    return ConsistencyFunction(output=spec.prediction)


def consistency_copy(model: Model, dropout: float) -> Model:
    """A trainable copy of a denoiser, read as a consistency function."""
    function = consistency_function_of(model.spec)
    return trainable_copy(model, dropout, prediction=function, discrete_steps=None)


def consistency_from_scratch(dropout: float, context: Context) -> tuple[Model, ImageSource]:
    """A freshly initialised consistency function of the config's section `model`, and its images.

    Raises:
        UserError: `dropout`, the method's key for students that start from a run, is given.
    """
    if dropout:
        raise UserError(
            f"method.dropout={dropout} is of a student that starts from a run: set "
            "model.network.dropout"
        )
    data, spec = images_and_spec(context)
    changes = {"prediction": consistency_function_of(spec), "discrete_steps": None}
    model = new_model(spec.model_copy(update=changes), context)
    return model, ImageSource(data, context.seed)


def boundary_x0(model: Model, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
    """The consistency function [B, ...] at times s [B] that may be 0, where it is x itself whatever
    the network says; without gradient, and with the dropout masks that the forward after it will
    draw (Song and Dhariwal 2024, sec. 3.4)."""
    with torch.no_grad():
        if model.spec.network.dropout == 0:
            inner, F = s > model.parameterisation.t_min, torch.zeros_like(x)
            if bool(inner.any()):  # nothing is evaluated where nothing depends on it
                F[inner] = model.output(x[inner], s[inner], condition.rows(inner))
            x0 = model.parameterisation.x0(F, x, s, model.path)
        else:
            model.train()
            with same_dropout(x):
                x0 = model.x0(x, s, condition)
    return x0


def ode_step(
    teacher: Model, solver: Solver, x: Tensor, t: Tensor, s: Tensor, condition: Condition
) -> Tensor:
    """One step of the teacher's ODE from t to s (both [B]), in the straight coordinates of
    core/sampling/solvers/ode.py."""
    path = teacher.path
    x0, eps = teacher.denoised(x, t, condition)
    end = path.mix(x0, eps, s)
    inner = s > 0
    if solver == "euler" or not bool(inner.any()):
        return end
    # A step that ends on clean data is an Euler step, and the teacher is not asked there.
    x, t, s = x[inner], t[inner], s[inner]
    x0_s, eps_s = teacher.denoised(end[inner], s, condition.rows(inner))
    a, b = path.at(t), path.at(s)
    scale_a, scale_b = a.alpha + a.sigma, b.alpha + b.sigma
    dw = b.sigma / scale_b - a.sigma / scale_a
    slope = 0.5 * (eps[inner] - x0[inner] + eps_s - x0_s)
    end[inner] = expand(scale_b, x) * (x / expand(scale_a, x) + expand(dw, x) * slope)
    return end


def doubling_steps(start: int, end: int, fraction: float) -> int:
    """N after that fraction of the budget: doublings from `start`, spread evenly, and never above
    `end` (Song and Dhariwal 2024, sec. 3.4)."""
    doublings = 0
    while start * 2 ** (doublings + 1) <= end:
        doublings += 1
    return min(start * 2 ** min(int(fraction * (doublings + 1)), doublings), end)
