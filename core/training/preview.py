"""Sample grids during training: the same noise, labels and captions every time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from core.errors import UserError
from core.model import Model
from core.noise import Noise
from core.pictures import save_png, sheet
from core.sampling.sample import condition_in_turn, grid_of, sample
from core.setting import Setting
from core.training.config import LogConfig


def preview_setting(log: LogConfig, model: Model, steps: int | None = None) -> Setting:
    """How the grids are sampled: as `log` says, else as the model is meant to be. `steps` are those
    that the network is being made for, if it is made for one number.

    Raises:
        UserError: the model cannot be sampled so.
    """
    meant = model.spec.setting
    sampler = log.sampler or meant.sampler
    chosen = {"sampler": sampler, "steps": steps or log.steps or meant.steps}
    setting = meant.model_copy(update=chosen) if sampler == meant.sampler else Setting(**chosen)
    try:
        grid_of(setting, model)
    except UserError as error:
        given = f"log.sampler={setting.sampler}, log.steps={setting.steps}"
        raise UserError(f"{given}: {error}") from error
    return setting


@torch.no_grad()
def preview_samples(log: LogConfig, model: Model, steps: int | None = None) -> Tensor:
    """`log.samples` images, classes and captions in rotation."""
    rng = Noise(0, torch.arange(log.samples, device=model.device))
    condition = condition_in_turn(model.spec, rng.indices)
    return model.codec.decode(sample(model, preview_setting(log, model, steps), rng, condition))


def save_preview(images: Tensor, file: Path) -> None:
    """Images or points as a sheet of ten columns."""
    picture, scale = sheet(images.cpu(), columns=10)
    save_png(picture, file, scale)
