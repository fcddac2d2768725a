"""The one way from a model, a setting and random numbers to samples."""

from __future__ import annotations

import torch
from torch import Tensor

from core.condition import UNCONDITIONED, Condition
from core.diffusion.grids import make_grid
from core.diffusion.parameterisations import Denoised
from core.diffusion.paths import Path
from core.errors import UserError, nearest
from core.model import Model, ModelSpec
from core.noise import Noise, check_seed
from core.sampling.denoisers import (
    Denoiser,
    check_guidance,
    check_label,
    check_threshold,
    denoiser_for,
    in_interval,
)
from core.sampling.solvers import Callback, Sampler, make_sampler
from core.setting import Setting


def sampler_of(setting: Setting) -> Sampler:
    """The setting's sampler; raises UserError for a name or an option that it does not have."""
    sampler = make_sampler(setting.sampler)
    for option in setting.options:
        if option not in sampler.options:
            has = nearest(option, sampler.options) if sampler.options else " (it has none)"
            raise UserError(f"sampler {setting.sampler} has no option '{option}'{has}")
    return sampler


def grid_of(setting: Setting, model: Model) -> Tensor:
    """The times [steps + 1] that the model is sampled at; raises UserError if it cannot be."""
    grid = setting.grid or sampler_of(setting).grid
    return make_grid(grid, model.path, setting.steps, model.spec.discrete_steps)


def denoiser_of(model: Model, setting: Setting, condition: Condition = UNCONDITIONED) -> Denoiser:
    """The denoiser that the setting's sampler is given; raises UserError as denoiser_for does."""
    s = setting
    return denoiser_for(model, condition, s.guidance_scale, s.threshold, s.guidance_interval)


class _Counting:
    """A denoiser without a network, to learn how often a sampler asks; guidance asks twice at the
    times where it acts."""

    def __init__(self, path: Path, twice: bool, interval: tuple[float, float] | None):
        self.path, self.twice, self.interval, self.evals = path, twice, interval, 0

    def _count(self, t: Tensor) -> None:
        self.evals += 2 if self.twice and in_interval(t, self.interval) else 1

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        self._count(t)
        return Denoised(torch.zeros_like(x), x)

    def map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self._count(t)
        return x


def expected_nfe(model: Model, setting: Setting) -> int:
    """Network evaluations per sample, found by running the sampler without the network: for
    estimates and progress bars.

    Raises:
        UserError: the setting does not fit the model.
    """
    check_guidance(model.spec, setting.guidance_scale, setting.guidance_interval)
    check_threshold(model.spec, setting.threshold)
    twice = setting.guidance_scale != 1.0 and model.spec.guidance is None
    counting = _Counting(model.path, twice, setting.guidance_interval)
    rng = Noise(0, torch.zeros(1, dtype=torch.int64))
    grid = grid_of(setting, model)
    sampler_of(setting).run(counting, torch.zeros(1, 1, 1, 1), grid, rng, **setting.options)
    return counting.evals


def condition_in_turn(spec: ModelSpec, indices: Tensor) -> Condition:
    """The condition of samples with these global indices where nobody chose: classes take turns,
    and held-out captions too, since a random number of images of each would only add noise to
    whatever is measured."""
    label = indices % spec.num_classes if spec.num_classes else None
    return Condition(label=label, text=spec.text.in_turn(indices) if spec.text else None)


def chosen_condition(
    spec: ModelSpec, indices: Tensor, label: Tensor | int | None, caption: str | None
) -> Condition:
    """The condition of these samples [B] where somebody chose a label, a caption, or both: of the
    two, what was not chosen is null.

    Args:
        label: one class for all, or a class per sample [B].
        caption: one for all.

    Raises:
        UserError: the model is not told what was chosen, or does not know a word of the caption.
    """
    count, device = len(indices), indices.device
    if label is not None and not spec.num_classes:
        raise UserError("a label is given, but this model is told no classes")
    if isinstance(label, int):
        check_label(label, spec.num_classes)
        label = torch.full((count,), label)
    text = None
    if caption is not None:
        if spec.text is None:
            raise UserError("a caption is given, but this model reads none")
        text = spec.text.tokens([caption]).expand(count, -1)
    given = (None if part is None else part.to(device) for part in (label, text))
    return Condition(label=next(given), text=next(given))


@torch.no_grad()
def carry(
    model: Model,
    setting: Setting,
    x: Tensor,
    times: Tensor,
    rng: Noise | None = None,
    condition: Condition = UNCONDITIONED,
    callback: Callback | None = None,
) -> Tensor:
    """x [B, *spec.shape] at times[0], carried by the setting's sampler along the float64 times to
    the last; x itself where there is one time.

    Raises:
        UserError: the setting or the condition does not fit the model.
    """
    denoiser = denoiser_of(model, setting, condition)
    return sampler_of(setting).run(denoiser, x, times, rng, callback, **setting.options)


def sample(
    model: Model,
    setting: Setting,
    rng: Noise,
    condition: Condition = UNCONDITIONED,
    callback: Callback | None = None,
) -> Tensor:
    """Samples [B, *spec.shape] as the network sees them, on the device of `rng`.

    Noise comes from the address of each sample, so batch size and process count change nothing.

    Raises:
        UserError: the setting or the condition does not fit the model.
    """
    grid, noise = grid_of(setting, model), rng.normal(model.spec.shape, "prior")
    return carry(model, setting, noise, grid, rng, condition, callback)


@torch.no_grad()
def sample_images(
    model: Model,
    setting: Setting,
    indices: Tensor,
    seed: int = 0,
    label: Tensor | int | None = None,
    callback: Callback | None = None,
    caption: str | None = None,
) -> Tensor:
    """The samples with these global indices (int64 [B]) as data are stored, on the CPU: uint8
    images [B, C, S, S], or points in float32 [B, D, 1, 1].

    Args:
        label: one class for all, or a class per sample [B].
        caption: one for all. Where neither is given, classes and held-out captions take turns by
            index.

    Raises:
        UserError: the setting does not fit the model, it is not told what was chosen, a seed is
            another one's, or the samples are NaN or infinite.
    """
    check_seed(seed)
    rng = Noise(seed, indices.to(model.device))
    chosen = label is not None or caption is not None
    condition = (
        chosen_condition(model.spec, rng.indices, label, caption)
        if chosen
        else condition_in_turn(model.spec, rng.indices)
    )
    x = sample(model, setting, rng, condition, callback)
    if not torch.isfinite(x).all():
        raise UserError(
            f"sampled with {setting.label()}: NaN or infinite images; the weights have diverged"
        )
    return model.codec.decode(x).cpu()
