"""Small randomly initialised checkpoints, saved by diffusers itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import torch

UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
DIT = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
    "num_embeds_ada_norm": 10,
}


def save_checkpoint(
    folder: Path, scheduler="DDPMScheduler", scheduler_config: dict | None = None, **unet
) -> Path:
    """A DDPMPipeline of a UNet2DModel with these values beside UNET's and the scheduler's."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**(UNET | unet))
    for name, p in model.named_parameters():  # so that times and labels matter
        if "time_emb_proj" in name or "class_embedding" in name:
            torch.nn.init.normal_(p, std=0.5)
    chosen = getattr(diffusers, scheduler)(**(scheduler_config or {}))
    diffusers.DDPMPipeline(unet=model, scheduler=chosen).save_pretrained(folder)
    return Path(folder)


def with_scheduler(checkpoint: Path, folder: Path, scheduler: str, **config) -> Path:
    """The same network with another scheduler, saved by diffusers."""
    if not folder.exists():
        shutil.copytree(checkpoint, folder)
    getattr(diffusers, scheduler)(**config).save_pretrained(folder / "scheduler")
    return folder


def rewrite(file: Path, **values) -> None:
    """Changes values of a JSON file; None removes a key."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
