"""What a sampler is given: `denoiser(x, t) -> Denoised(x0, eps)` with a `.path`; labels, guidance
and thresholding inside.

A denoiser is built by composition, for example `Thresholded(Guided(model, label, scale=2.0),
dynamic_threshold())`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from core.codec import LatentSpec
from core.condition import UNCONDITIONED, Condition
from core.diffusion.parameterisations import Denoised
from core.diffusion.paths import Path, expand
from core.errors import UserError
from core.model import Model, ModelSpec
from core.setting import Threshold


class Denoiser(Protocol):
    """x [B, ...] and t (a float64 scalar tensor) -> the guess of data and noise in x."""

    path: Path

    def __call__(self, x: Tensor, t: Tensor) -> Denoised: ...

    def map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Where x at t arrives at s <= t, in one evaluation."""


class Conditioned:
    """A model with its condition bound."""

    def __init__(self, model: Model, condition: Condition = UNCONDITIONED):
        self.model, self.condition, self.path = model, condition, model.path

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        return self.model.denoised(x, t, self.condition)

    def map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.model.map(x, t, s, self.condition)


class Guided:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6): F = F_null + scale (F_told -
    F_null), told a label, a caption, or both.

    The outputs are combined before they are read, which for eps, x0, v and u alike is the paper's
    combination of noise predictions, since all are affine in each other at fixed (x, t). Two
    evaluations per call; scale = 1 is guidance switched off, for which `denoiser_for` builds a
    Conditioned instead.
    """

    def __init__(self, model: Model, condition: Condition, scale: float):
        self.model, self.scale, self.path = model, scale, model.path
        self.both = condition.beside(condition.without_label(model.spec.num_classes))

    def _output(self, x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        F, F_null = self.model.output(torch.cat([x, x]), t, self.both, s).chunk(2)
        return torch.lerp(F_null, F, self.scale)

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        return self.model.read(self._output(x, t), x, t)

    def map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.model.parameterisation.map(self._output(x, t, s), x, t, s, self.path)


Interval = tuple[float, float]


def in_interval(t: Tensor, interval: Interval | None) -> bool:
    """Whether guidance acts at the time t, a scalar; an interval has both its ends, None all
    times."""
    return interval is None or interval[0] <= float(t) <= interval[1]


class Within:
    """`guided` at the times of the interval, and `plain`, which costs one evaluation, at all
    others (Kynkaanniemi et al. 2024, eq. 5, whose interval is of noise levels)."""

    def __init__(self, guided: Denoiser, plain: Denoiser, interval: Interval):
        self.guided, self.plain, self.interval, self.path = guided, plain, interval, guided.path

    def _at(self, t: Tensor) -> Denoiser:
        return self.guided if in_interval(t, self.interval) else self.plain

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        return self._at(t)(x, t)

    def map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self._at(t).map(x, t, s)


def static_threshold(x0: Tensor) -> Tensor:
    """Clips to the range of images, [-1, 1] (Ho et al. 2020's code)."""
    return x0.clamp(-1, 1)


def dynamic_threshold(quantile: float = 0.995) -> Callable[[Tensor], Tensor]:
    """Clips each image at that quantile of its own |x0|, if above 1, and scales it back (Saharia et
    al. 2022, sec. 2.3)."""

    def threshold(x0: Tensor) -> Tensor:
        limit = (
            torch.quantile(x0.flatten(1).abs().float(), quantile, dim=1).clamp(min=1).to(x0.dtype)
        )
        limit = limit.view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-limit, limit) / limit

    return threshold


class Thresholded:
    """Applies a threshold to x0 and recomputes eps, so that both still add up to x; with `keep_eps`
    eps stays as it was."""

    def __init__(
        self, inner: Denoiser, threshold: Callable[[Tensor], Tensor], keep_eps: bool = False
    ):
        self.inner, self.threshold, self.path, self.keep_eps = (
            inner,
            threshold,
            inner.path,
            keep_eps,
        )

    def map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        raise UserError("a map to another time has no x0 to clip: take threshold none")

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        guess = self.inner(x, t)
        x0 = self.threshold(guess.x0)
        if self.keep_eps:
            return Denoised(x0, guess.eps)
        c = self.path.at(t)
        return Denoised(x0, (x - expand(c.alpha, x) * x0) / expand(c.sigma, x))


THRESHOLDS: dict[Threshold, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "static": static_threshold,
    # Of x0 alone, beside the eps it was made from: the default of diffusers' DDIMScheduler
    "static-x0": static_threshold,
    "dynamic": dynamic_threshold(),
}


def check_guidance(spec: ModelSpec, scale: float, interval: Interval | None = None) -> None:
    """Raises UserError where the model has nothing that guidance could compare with, or cannot be
    without guidance outside of the interval."""
    if scale == 1.0:
        return
    if not spec.told:
        raise UserError(
            f"guidance_scale={scale} needs a model that is told classes or captions; 1.0 is off"
        )
    if spec.guidance is not None:
        low, high = spec.guidance
        if not low <= scale <= high:
            raise UserError(
                f"guidance_scale={scale}: this model learned the weights from {low:g} to {high:g}"
            )
        if interval is not None and not low <= 1 <= high:
            raise UserError(
                f"guidance_interval={list(interval)}: outside of it guidance is off, 1.0, and this "
                f"model learned the weights from {low:g} to {high:g}: leave the interval out"
            )
        return
    if spec.null_trained is False:
        raise UserError(
            f"guidance_scale={scale}: this model never learned its null label or caption, which "
            "guidance compares with; sample its teacher, or train with method.label_dropout above 0"
        )


def check_threshold(spec: ModelSpec, threshold: Threshold) -> None:
    """Raises UserError where x0 has no range that it could be clipped to."""
    if threshold != "none" and isinstance(spec.codec, LatentSpec):
        raise UserError(
            f"threshold={threshold} clips to the range of pixels, which the latents of this model "
            "do not have: take none"
        )


def _guided(model: Model, condition: Condition, scale: float) -> Denoiser:
    """Under guidance: in one evaluation where the network is told its weight, else in two."""
    given = condition.tells(model.spec.num_classes)
    if given is None:
        raise UserError(f"guidance_scale={scale} needs labels or captions; 1.0 is off")
    if model.spec.guidance is None:
        return Guided(model, condition, scale)
    told = torch.full(given.shape, scale, device=given.device)
    return Conditioned(model, condition._replace(guidance=told))


def check_label(label: int, classes: int) -> None:
    """Raises UserError for a label that is neither a class nor the null label."""
    if not 0 <= label <= classes:
        raise UserError(
            f"label {label} is out of range: this model knows 0 to {classes - 1} (and {classes}, "
            "null)"
        )


def denoiser_for(
    model: Model,
    condition: Condition = UNCONDITIONED,
    guidance_scale: float = 1.0,
    threshold: Threshold = "none",
    guidance_interval: Interval | None = None,
) -> Denoiser:
    """The denoiser for these options.

    Raises:
        UserError: guidance without classes or captions, a threshold on latents, or a label outside
            0..num_classes (num_classes is the null label).
    """
    label, classes = condition.label, model.spec.num_classes
    if label is not None and (bad := label[(label < 0) | (label > classes)]).numel():
        check_label(int(bad[0]), classes)
    check_guidance(model.spec, guidance_scale, guidance_interval)
    check_threshold(model.spec, threshold)
    denoiser: Denoiser = Conditioned(model, condition)
    if guidance_scale != 1.0:
        guided = _guided(model, condition, guidance_scale)
        denoiser = (
            guided if guidance_interval is None else Within(guided, denoiser, guidance_interval)
        )
    if (function := THRESHOLDS[threshold]) is not None:
        denoiser = Thresholded(denoiser, function, keep_eps=threshold == "static-x0")
    return denoiser
