"""The config of stored pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from core.config import Strict
from core.setting import GuidanceScale, Steps


class PairsConfig(Strict):
    """Stored pairs: which model makes them, how, and how many."""

    run: str = Field(min_length=1)
    """folder of the run to sample from"""
    out: str = Field(min_length=1)
    """folder for the pairs"""
    count: int = Field(ge=1, le=10**9)
    """number of pairs"""
    sampler: str = "heun"
    """one that adds no noise"""
    steps: Steps = 16
    """of the sampler"""
    seed: int = Field(default=1, ge=0, lt=2**32)
    """not 0, which is evaluation's, so that its noise is not trained on"""
    guidance_scale: GuidanceScale = 1.0
    """classifier-free guidance (1.0 = off)"""
    shard: int = Field(default=4096, ge=1, le=1_000_000)
    """pairs per file"""
    batch_size: int = Field(default=256, ge=1, le=1_000_000)
    """pairs at a time"""
    weights: Literal["ema", "raw"] = "ema"
    """of the run"""
