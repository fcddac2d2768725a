"""A tiny training run for tests: real code, a few thousand parameters, seconds."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import Accelerator

from core.training.config import parse_run_config
from core.training.method import Context
from core.training.trainer import Trainer
from lab import feature_network, load, method_class

NETWORK = {"widths": [8], "blocks": 1, "attention": [], "patch": 2}


def tiny_config(
    folder: Path | str,
    name: str = "ddpm",
    prediction: str = "v",
    path: str = "vp-cosine",
    method: dict | None = None,
    images: int = 640,
    lr: float = 1e-3,
    network: dict | None = None,
    own_network: dict | None = None,
    **sections: dict,
) -> dict:
    """The values of a run config on digits; a method that copies its network gets no model section.

    network: changes to the tiny U-Net; own_network: a network of another kind in its place.
    """
    copies = {"teacher", "init"} & (method or {}).keys()
    values = {
        "run": str(folder),
        "data": {"name": "digits"},
        "method": {"name": name, **(method or {})},
        "optimizer": {"lr": lr},
        "ema": {"half_life": 320},
        "budget": {"images": images},
        "train": {"batch_size": 64},
        "log": {
            "metrics_every": 320,
            "samples_every": 10**9,
            "checkpoint_every": 320,
            "samples": 10,
        },
    }
    if not copies:
        chosen = own_network or {**NETWORK, **(network or {})}
        values["model"] = {"network": chosen, "path": path, "prediction": prediction}
    for key, value in sections.items():
        values[key] = {**values.get(key, {}), **value}
    return values


def train_tiny(folder: Path | str, name: str = "ddpm", **options) -> Trainer:
    """Trains in this process and returns the trainer."""
    values = tiny_config(folder, name, **options)
    cls = method_class(name)
    config = parse_run_config(values, cls, "test")
    accelerator = Accelerator(cpu=True)
    method = cls.from_config(
        config.method,
        Context(config.data, config.model, config.train.seed, accelerator.device, load, feature_network),
    )
    trainer = Trainer(config, method, accelerator)
    trainer.run()
    return trainer


def metrics_of(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
