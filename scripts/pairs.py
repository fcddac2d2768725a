"""Generate the noise-data pairs that a YAML config describes, from a flow or a teacher, for reflow
and for distilling a flow; the same command goes on after an interruption.

    python -m scripts.pairs configs/digits/flow_pairs.yaml
    python -m scripts.pairs configs/digits/flow_pairs.yaml run=runs/flow out=runs/more count=50000

The keys of the config:
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import torch

import lab
from core.config import Strict, parse, read_config
from core.errors import command_line
from scripts.keys import keys_of


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


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.pairs",
        description=__doc__ + "\n".join(f"    {key}" for key in keys_of(PairsConfig)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as count=50000")
    a = parser.parse_args()
    config = parse(PairsConfig, read_config(a.config, a.overrides), a.config)

    from core.data.pairs import generate_pairs

    run = lab.load(config.run, config.weights, "cuda" if torch.cuda.is_available() else "cpu")
    recipe = config.model_dump(exclude={"run", "out", "weights"})
    generate_pairs(run, Path(config.out), **recipe)


if __name__ == "__main__":
    main()
