"""What `python -m scripts.likelihood` is told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from core.config import Strict
from eval.likelihood.bound import BoundConfig
from eval.likelihood.flow import Integration


class LikelihoodConfig(Strict):
    """The keys of a measurement; what is left out is as it stands here."""

    out: str = Field(min_length=1)
    """folder for rows, values of single images, table and picture"""
    n: int = Field(default=256, ge=2, le=1_000_000)
    """images of each set, its first ones"""
    split: Literal["test", "train"] = "test"
    """of the run's data"""
    label: Literal["null", "own"] = "null"
    """p(x) by the null label, or p(x | class) with each image's own"""
    density: Integration = Integration()
    """of the change of variables along the flow"""
    bound: BoundConfig | None = BoundConfig()
    """the variational bound; null: leave it out"""
    outliers: bool = False
    """also score images that do not belong to the data, and the training images"""
    levels: int = Field(default=8, ge=1, le=1000)
    """noise levels of the score's norm and of the error of eps"""
    back_steps: int = Field(default=8, ge=1, le=1000)
    """steps of UniPC from half noise"""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """of dequantisation, probes and noise"""
    batch_size: int = Field(default=64, ge=1, le=100_000)
    """images at once, which share the solver's steps"""
    weights: Literal["ema", "raw"] = "ema"
    """which of the run's weights"""
    device: str | None = None
    """null: a GPU if there is one"""
