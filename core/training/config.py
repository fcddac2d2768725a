"""The config of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, create_model, model_validator

from core.config import Strict, dump_config, parse, read_config
from core.data import DataConfig
from core.errors import UserError
from core.files import write_text
from core.model import ModelConfig
from core.setting import Steps
from core.training.method import Method, MethodConfig
from core.training.roles import AverageConfig, OptimizerConfig
from core.training.snapshots import SnapshotConfig


class BudgetConfig(Strict):
    """The price of training, under which methods are compared: give exactly one key."""

    images: int | None = Field(default=None, ge=1, lt=2**53)
    """images seen"""
    evals: float | None = Field(default=None, gt=0, lt=2**53)
    """network evaluations, summed over images: forward 1, backward 2, every network counted, and
    what went into stored pairs"""

    @model_validator(mode="after")
    def _one(self) -> BudgetConfig:
        if (self.images is None) == (self.evals is None):
            raise ValueError("give exactly one of budget.images and budget.evals, above 0")
        return self


class TrainConfig(Strict):
    """Batches, the seed and the arithmetic."""

    LATER = ("tf32",)

    batch_size: int = Field(default=128, ge=1, le=1_000_000)
    """images per optimiser step, over all processes"""
    accumulate: int = Field(default=1, ge=1)
    """micro-batches that a process cuts its share into"""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """seed of initialisation, data order, noise and dropout"""
    tf32: bool = False
    """let a GPU multiply float32 in TensorFloat-32, with 10 bits of each factor"""

    @model_validator(mode="after")
    def _divides(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError("batch_size must be a positive multiple of accumulate")
        return self


class LogConfig(Strict):
    """What is written on the way; it may change on resuming."""

    metrics_every: int = Field(default=10_000, ge=1)
    """images between lines of metrics.jsonl"""
    samples_every: int = Field(default=100_000, ge=1)
    """images between grids of samples"""
    checkpoint_every: int = Field(default=100_000, ge=1)
    """images between checkpoints"""
    samples: int = Field(default=40, ge=1, le=10_000)
    """images per grid"""
    sampler: str | None = None
    """sampler of the grids; null: the one the model is meant for"""
    steps: Steps | None = None
    """steps of the grids; null: those the model is meant for"""
    wandb: Literal["online", "offline"] | None = None
    """also log to Weights & Biases"""
    wandb_project: str = Field(default="fast-sampling", pattern=r"^[^/\\#?%:]{1,128}$")
    """project there"""


class RunConfig(Strict):
    """A training run. `parse_run_config` gives the section `method` its method's own type."""

    LATER = ("snapshots",)

    run: str = Field(min_length=1)
    """folder of the run"""
    data: DataConfig
    """the data set"""
    model: ModelConfig | None = None
    """the network and what it predicts; null where a method copies a trained model"""
    method: MethodConfig
    """the method and its keys"""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW, rate, clipping"""
    ema: AverageConfig = AverageConfig()
    """the moving average that is sampled"""
    budget: BudgetConfig
    """how long to train"""
    train: TrainConfig = TrainConfig()
    """batches and seed"""
    log: LogConfig = LogConfig()
    """what is written on the way"""
    snapshots: SnapshotConfig | None = None
    """averages of other half-lives after training; null: none"""


def parse_run_config(values: dict, method: type[Method], source: str) -> RunConfig:
    """`values` as a RunConfig whose method section has the type that `method` declares."""
    cls = create_model("RunConfig", __base__=RunConfig, method=(method.Config, ...))
    return parse(cls, values, source)


def check_run_folder(config: RunConfig, folder: Path) -> bool:
    """Whether the folder holds this run; False if there is no run yet. Its own name may differ,
    since a run may have been moved, and so may what is logged and how often, which changes nothing
    of the training.

    Raises:
        UserError: the folder belongs to another config, naming the first key that differs, or to no
            run at all.
    """
    file = folder / "config.yaml"
    if file.is_file():
        old = _flat(read_config(file))
        new = _flat(config.model_dump(mode="json", serialize_as_any=True))
        keys = old.keys() | new.keys()
        for key in sorted(key for key in keys if key != "run" and not key.startswith("log.")):
            if old.get(key) != new.get(key):
                raise UserError(
                    f"{folder} was trained with another config: {key} is {old.get(key)!r} there and "
                    f"{new.get(key)!r} here; give run=ANOTHER_FOLDER, or the same values to go on"
                )
        return True
    # Hidden files are leftovers of an interrupted start, or an operating system's own.
    if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise UserError(
            f"{folder} exists, is not empty and has no config.yaml, so it is not a run: choose "
            "another run=FOLDER"
        )
    return False


def settle_run_folder(config: RunConfig, folder: Path) -> None:
    """Creates the run's folder with its resolved config, or checks that the one that is there has
    the same; raises UserError as check_run_folder does."""
    if not check_run_folder(config, folder):
        write_text(folder / "config.yaml", dump_config(config))


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat
