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

from core.diffusion.paths import Path, expand
from core.diffusion.predictions import Denoised
from core.errors import UserError
from core.model import Model


class Denoiser(Protocol):
    """x [B, ...] and t (a float64 scalar tensor) -> the guess of data and noise in x."""

    path: Path

    def __call__(self, x: Tensor, t: Tensor) -> Denoised: ...


class Conditioned:
    """A model with its labels bound (None: unconditional, or the null label)."""

    def __init__(self, model: Model, label: Tensor | None = None):
        self.model, self.label, self.path = model, label, model.path

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        return self.model.denoised(x, t, self.label)


class Guided:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6): F = F_null + scale (F_label -
    F_null).

    The outputs are combined before they are read, which for eps, x0, v and u alike is the paper's
    combination of noise predictions, since all are affine in each other at fixed (x, t). Two
    evaluations a call; scale = 1 is guidance switched off, for which `denoiser_for` builds a
    Conditioned instead.
    """

    def __init__(self, model: Model, label: Tensor, null: int, scale: float):
        self.model, self.scale, self.path = model, scale, model.path
        self.labels = torch.cat([label, torch.full_like(label, null)])

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        F, F_null = self.model.output(torch.cat([x, x]), t, self.labels).chunk(2)
        return self.model.read(torch.lerp(F_null, F, self.scale), x, t)


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

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        guess = self.inner(x, t)
        x0 = self.threshold(guess.x0)
        if self.keep_eps:
            return Denoised(x0, guess.eps)
        c = self.path.at(t)
        return Denoised(x0, (x - expand(c.alpha, x) * x0) / expand(c.sigma, x))


THRESHOLDS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "static": static_threshold,
    "static-x0": static_threshold,  # of x0 alone, beside the eps it was made from: the default of diffusers' DDIMScheduler
    "dynamic": dynamic_threshold(),
}


def denoiser_for(
    model: Model,
    label: Tensor | None,
    num_classes: int,
    guidance_scale: float = 1.0,
    threshold: str = "none",
) -> Denoiser:
    """The denoiser for these options.

    Raises:
        UserError: guidance without classes, or a label outside 0..num_classes (num_classes is the
            null label).
    """
    if (
        label is not None
        and len(label)
        and (bad := label[(label < 0) | (label > num_classes)]).numel()
    ):
        raise UserError(
            f"label {int(bad[0])} is out of range: this model knows 0 to {num_classes - 1} (and {num_classes}, null)"
        )
    if guidance_scale != 1.0 and (label is None or num_classes == 0):
        raise UserError(
            f"guidance_scale={guidance_scale} needs a class-conditional model and labels; 1.0 is off"
        )
    denoiser: Denoiser = (
        Conditioned(model, label)
        if guidance_scale == 1.0
        else Guided(model, label, num_classes, guidance_scale)
    )
    if (function := THRESHOLDS[threshold]) is not None:
        denoiser = Thresholded(denoiser, function, keep_eps=threshold == "static-x0")
    return denoiser
