"""Generate the noise-data pairs that a YAML config describes, from a flow or a teacher, for reflow
and for distilling a flow; the same command goes on after an interruption.

    python -m scripts.pairs configs/digits/flow_pairs.yaml
    python -m scripts.pairs configs/digits/flow_pairs.yaml run=runs/flow out=runs/more count=50000
    accelerate launch --num_processes 8 -m scripts.pairs configs/cifar10/flow_pairs.yaml

The keys of the config:
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lab
from core.config import parse, read_config
from core.errors import command_line
from core.processes import start_processes
from scripts.keys import keys_of
from scripts.pairs_config import PairsConfig


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

    from core.pairs import generate_pairs

    run = lab.load(config.run, config.weights, start_processes().device)
    recipe = config.model_dump(exclude={"run", "out", "weights"})
    generate_pairs(run, Path(config.out), **recipe)


if __name__ == "__main__":
    main()
