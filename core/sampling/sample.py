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
from core.noise import Noise
from core.sampling.denoisers import check_guidance, check_threshold, denoiser_for
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


class _Counting:
    """A denoiser without a network, to learn how often a sampler asks."""

    def __init__(self, path: Path):
        self.path, self.calls = path, 0

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        self.calls += 1
        return Denoised(torch.zeros_like(x), x)

    def map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.calls += 1
        return x


def expected_nfe(model: Model, setting: Setting) -> int:
    """Network evaluations per sample, found by running the sampler without the network: for
    estimates and progress bars.

    Raises:
        UserError: the setting does not fit the model.
    """
    check_guidance(model.spec, setting.guidance_scale)
    check_threshold(model.spec, setting.threshold)
    counting, rng = _Counting(model.path), Noise(0, torch.zeros(1, dtype=torch.int64))
    grid = grid_of(setting, model)
    sampler_of(setting).run(counting, torch.zeros(1, 1, 1, 1), grid, rng, **setting.options)
    one = setting.guidance_scale == 1.0 or model.spec.guidance is not None
    return counting.calls * (1 if one else 2)


def labels_in_turn(spec: ModelSpec, indices: Tensor) -> Condition:
    """The condition of samples with these global indices where nobody chose: classes take turns,
    since a random number of images per class would only add noise to whatever is measured."""
    return Condition(label=indices % spec.num_classes) if spec.num_classes else UNCONDITIONED


@torch.no_grad()
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
    grid = grid_of(setting, model)
    denoiser = denoiser_for(model, condition, setting.guidance_scale, setting.threshold)
    noise = rng.normal(model.spec.shape, "prior")
    return sampler_of(setting).run(denoiser, noise, grid, rng, callback, **setting.options)


@torch.no_grad()
def sample_images(
    model: Model,
    setting: Setting,
    indices: Tensor,
    seed: int = 0,
    label: Tensor | int | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """The samples with these global indices (int64 [B]) as data are stored, on the CPU: uint8 images
    [B, C, S, S], or points in float32 [B, D, 1, 1].

    Args:
        label: one class for all, or a class per sample [B]; None: classes take turns by index.

    Raises:
        UserError: the setting does not fit the model, or a label for an unconditional one, or the
            samples are NaN or infinite.
    """
    rng = Noise(seed, indices.to(model.device))
    if label is None:
        condition = labels_in_turn(model.spec, rng.indices)
    elif not model.spec.num_classes:
        raise UserError("a label is given, but this model is unconditional")
    else:
        given = torch.full((len(indices),), label) if isinstance(label, int) else label
        condition = Condition(label=given.to(model.device))
    x = sample(model, setting, rng, condition, callback)
    if not torch.isfinite(x).all():
        raise UserError(
            f"sampled with {setting.label()}: NaN or infinite images; the weights have diverged"
        )
    return model.codec.decode(x).cpu()
