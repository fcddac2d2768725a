"""Every key of a config carries its comment, and `--help` shows it."""

from __future__ import annotations

from typing import Literal

from core.config import Strict
from core.data import DataConfig
from core.training.config import (
    BudgetConfig,
    LogConfig,
    RunConfig,
    TrainConfig,
)
from core.training.roles import AverageConfig, OptimizerConfig
from lab import METHODS, method_class
from scripts.keys import keys_of
from scripts.pairs_config import PairsConfig
from tests.helpers.command_lines import refused, run_script


class Inner(Strict):
    size: tuple[int, ...] = (1, 2)
    """how large"""


class Outer(Strict):
    name: str
    """what it is called"""
    kind: Literal["a", "b"] | None = None
    """which one"""
    inner: Inner = Inner(size=(3,))
    """a section"""
    plain: float = 0.5


def test_a_key_a_line():
    """Sections are unfolded, with the defaults of the section's default."""
    assert [tuple(key[:4]) for key in keys_of(Outer)] == [
        ("name", "text", "required", "what it is called"),
        ("kind", "a | b | null", "null", "which one"),
        ("inner.size", "list of int", "[3]", "how large"),
        ("plain", "float", "0.5", None),
    ]


def uncommented(cls: type[Strict], prefix: str) -> list[str]:
    return [key.name for key in keys_of(cls, prefix) if not key.comment]


def test_shared_keys_have_comments():
    sections = {"run": RunConfig, "pairs": PairsConfig, "data": DataConfig, "ema": AverageConfig}
    sections |= {"optimizer": OptimizerConfig, "budget": BudgetConfig, "train": TrainConfig}
    sections |= {"log": LogConfig}
    for name, cls in sections.items():
        missing = [key for key, field in cls.model_fields.items() if not field.description]
        assert not missing, f"no comment: {name}.{missing}"


def test_methods_and_models_keys_have_comments():
    missing = {f"{m}: {key}" for m in METHODS for key in uncommented(method_class(m).Config, "")}
    missing |= {key for key in uncommented(RunConfig, "") if key.startswith("model.")}
    assert not missing, "no comment:\n" + "\n".join(sorted(missing))


def test_help_of_a_method(tmp_path, capsys):
    code, errors = run_script("train", "--help", "progressive")
    assert code == 0 and not errors
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    own = list(method_class("progressive").Config.model_fields)
    assert names[: len(own)] == [f"method.{name}" for name in own]
    assert {"run", "data.name", "model.prediction", "train.seed", "log.steps"} <= set(names)
    (rate,) = [line for line in lines if line.startswith("optimizer.lr ")]
    assert rate.split(maxsplit=3) == [
        "optimizer.lr",
        "float",
        "0.0002",
        "learning rate after the warm-up",
    ]
    assert "did you mean 'progressive'?" in refused(tmp_path, "train", "--help", "progresive")
    assert run_script("train", "--help")[0] == 0
    assert "--help [METHOD]" in capsys.readouterr().out
