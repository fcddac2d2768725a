"""The config of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import create_model, model_validator

from core.config import Strict, dump_config, parse
from core.data import DataConfig
from core.errors import UserError
from core.files import read_text, write_text
from core.model_spec import ModelConfig
from core.training.method import Method, MethodConfig


class OptimizerConfig(Strict):
    """AdamW. warmup: images over which the rate rises to lr; decay: what it does over each stage;
    clip: gradient norm, 0 = off."""

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    clip: float = 1.0


class EmaConfig(Strict):
    """half_life: images after which a weight's influence on the average has halved; the start-up is
    ema-pytorch's own, 1 - (1 + step)^-power."""

    half_life: float = 50_000
    power: float = 2 / 3


class BudgetConfig(Strict):
    """Exactly one of images (seen) and evals (network evaluations per image, summed: forward 1,
    backward 2, every network counted, and what went into stored pairs), the hardware-free price
    under which methods are compared."""

    images: int | None = None
    evals: float | None = None

    @model_validator(mode="after")
    def _one(self) -> BudgetConfig:
        given = [v for v in (self.images, self.evals) if v is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ValueError("give exactly one of budget.images and budget.evals, above 0")
        return self


class TrainConfig(Strict):
    """batch_size: images an optimiser step, over all processes; accumulate: micro-batches it is cut
    into."""

    batch_size: int = 128
    accumulate: int = 1
    seed: int = 0

    @model_validator(mode="after")
    def _divides(self) -> TrainConfig:
        if self.batch_size < 1 or self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError("batch_size must be a positive multiple of accumulate")
        return self


class LogConfig(Strict):
    """Intervals in images. wandb: "online", "offline" or null. sampler, steps: of the sample grids
    during training; a stage that makes a network for a number of steps of its own is sampled in
    that many."""

    metrics_every: int = 10_000
    samples_every: int = 100_000
    checkpoint_every: int = 100_000
    samples: int = 40
    sampler: str = "ddim"
    steps: int = 8
    wandb: Literal["online", "offline"] | None = None
    wandb_project: str = "fast-sampling"


class RunConfig(Strict):
    """run: the folder of the run; method: the section of the method named in it (filled in by
    `run_config_class`)."""

    run: str
    data: DataConfig
    model: ModelConfig | None = None
    method: MethodConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    budget: BudgetConfig
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()


def parse_run_config(values: dict, method: type[Method], source: str) -> RunConfig:
    """`values` as a RunConfig whose method section has the type that `method` declares."""
    cls = create_model("RunConfig", __base__=RunConfig, method=(method.Config, ...))
    return parse(cls, values, source)


def settle_run_folder(config: RunConfig, folder: Path, write: bool) -> None:
    """Creates the run's folder with its resolved config, or checks that the one that is there has
    the same. Its own name may differ, since a run may have been moved, and so may what is logged
    and how often, which changes nothing of the training.

    Raises:
        UserError: the folder belongs to another config, naming the first key that differs.
    """
    import yaml

    file, text = folder / "config.yaml", dump_config(config)
    if file.is_file():
        old, new = _flat(yaml.safe_load(read_text(file))), _flat(yaml.safe_load(text))
        for key in sorted(
            key for key in old.keys() | new.keys() if key != "run" and not key.startswith("log.")
        ):
            if old.get(key) != new.get(key):
                raise UserError(
                    f"{folder} was trained with another config: {key} is {old.get(key)!r} there and {new.get(key)!r} here; "
                    "give run=ANOTHER_FOLDER, or the same values to go on"
                )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} exists, is not empty and has no config.yaml, so it is not a run: choose another run=FOLDER"
        )
    elif write:
        write_text(file, text)


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat
