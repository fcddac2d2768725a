"""The config of stored pairs."""

from __future__ import annotations

from typing import Literal

from core.config import Strict


class PairsConfig(Strict):
    """Stored pairs: which model makes them, how, and how many."""

    run: str
    """folder of the run to sample from"""
    out: str
    """folder for the pairs"""
    count: int
    """number of pairs"""
    sampler: str = "heun"
    """one that adds no noise"""
    steps: int = 16
    """of the sampler"""
    seed: int = 1
    """not 0, which is evaluation's, so that its noise is not trained on"""
    guidance_scale: float = 1.0
    """classifier-free guidance (1.0 = off)"""
    shard: int = 4096
    """pairs a file"""
    batch_size: int = 256
    """pairs at a time"""
    weights: Literal["ema", "raw"] = "ema"
    """of the run"""
