"""Generate noise-data pairs from a flow or a teacher, for reflow and for distilling a flow;
resumable.

python -m scripts.pairs runs/flow --out runs/flow-pairs --count 50000 --sampler heun --steps 16
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import lab
from core.errors import command_line
from core.sampling.solvers import SAMPLERS


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="folder of the run to sample from")
    parser.add_argument("--out", required=True, type=Path, help="folder for the shards")
    parser.add_argument("--count", required=True, type=int, help="number of pairs")
    deterministic = [name for name, s in SAMPLERS.items() if not s.stochastic]
    parser.add_argument(
        "--sampler",
        default="heun",
        help=f"one of {', '.join(deterministic)} (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=16, help="default: %(default)s")
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="default: %(default)s, so that evaluation's seed 0 is not trained on",
    )
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="1.0 is off (default)")
    parser.add_argument(
        "--shard", type=int, default=4096, help="pairs a file (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=256, help="default: %(default)s")
    parser.add_argument(
        "--weights", choices=["ema", "raw"], default="ema", help="default: %(default)s"
    )
    a = parser.parse_args()

    from core.data.pairs import generate_pairs

    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = lab.load(a.run, a.weights, device)
    generate_pairs(
        run, a.out, a.count, a.sampler, a.steps, a.seed, a.guidance_scale, a.shard, a.batch_size
    )


if __name__ == "__main__":
    main()
