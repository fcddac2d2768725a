"""Sample grids during training: the same noise and labels every time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from core.data.dataset import to_uint8
from core.diffusion.grids import make_grid
from core.errors import UserError
from core.noise import Noise
from core.pictures import save_png, tile
from core.sampling.denoisers import denoiser_for
from core.sampling.solvers import make_sampler
from core.training.config import LogConfig
from core.training.method import Method


def check_preview(log: LogConfig, method: Method) -> None:
    """Raises UserError, before training begins, if the model cannot be sampled as `log` says."""
    model = method.model
    try:
        make_grid(make_sampler(log.sampler).grid, model.path, log.steps, model.discrete_steps)
    except UserError as error:
        raise UserError(f"log.sampler={log.sampler}, log.steps={log.steps}: {error}") from error


@torch.no_grad()
def save_preview(
    log: LogConfig, method: Method, network: nn.Module, file: Path, steps: int | None = None
) -> None:
    """`log.samples` images by `log.sampler` from the averaged network, classes in rotation. steps:
    those that the network is being made for (null = `log.steps`)."""
    model, spec = method.model, method.spec
    device = next(network.parameters()).device
    trained, model.network = model.network, network.eval()
    try:
        rng = Noise(0, torch.arange(log.samples, device=device))
        noise = rng.normal((spec.channels, spec.side, spec.side), "prior")
        label = rng.indices % spec.num_classes if spec.num_classes else None
        sampler = make_sampler(log.sampler)
        grid = make_grid(sampler.grid, model.path, steps or log.steps, model.discrete_steps)
        x = sampler.run(denoiser_for(model, label, spec.num_classes), noise, grid, rng)
    finally:
        model.network = trained
    save_png(tile(to_uint8(x).cpu(), columns=10), file, scale=max(1, 64 // spec.side))
