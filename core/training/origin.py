"""What a run's folder says of it to others: where it comes from (config.yaml) and what it cost
(price.json)."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field, FiniteFloat

from core.config import Strict, parse, read_config
from core.data import DataConfig
from core.errors import UserError
from core.files import read_json
from core.training.checkpoints import check_file


class _Part(Strict):
    model_config = ConfigDict(extra="ignore")


class _MethodName(_Part):
    name: str


class _HalfLife(_Part):
    half_life: float


class _Seed(_Part):
    seed: int


class RunOrigin(_Part):
    """What others want to know of a run from its config.yaml, of any version and any method."""

    data: DataConfig
    method: _MethodName
    ema: _HalfLife
    train: _Seed


def read_origin(folder: Path) -> RunOrigin:
    """Of the run in `folder`; raises UserError where its config.yaml does not say so."""
    file = folder / "config.yaml"
    return parse(RunOrigin, read_config(file), str(file))


class Price(_Part):
    """What training has cost by a checkpoint, and whose it is: price.json."""

    images: int = Field(ge=0)
    evals: FiniteFloat = Field(ge=0)
    seconds: FiniteFloat = Field(ge=0)
    teacher: str | None = None
    config_sha256: str
    processes: int = Field(default=1, ge=1)
    half_life: FiniteFloat | None = Field(default=None, ge=0)
    critic_features: tuple[str, ...] = ()


def read_price(checkpoint: Path) -> Price:
    """Raises UserError where price.json is missing or says something else."""
    file = checkpoint / "price.json"
    if not file.is_file():
        raise UserError(f"{file} is missing: copy it again from where it is whole")
    check_file(file)
    return parse(Price, read_json(file, "copy it again from where it is whole"), str(file))
