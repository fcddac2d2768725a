"""Measures the densities of a teacher or a flow: bits per dimension by the flow and by the variational
bound of a DDPM, and with outliers=true how well they and other scores tell images that do not
belong. The same command goes on after an interruption.

    python -m scripts.likelihood teachers/shipped/fashion_mnist out=runs/likelihood/fashion
    python -m scripts.likelihood runs/digits/flow out=runs/likelihood/flow n=449 bound=null \\
        density.tolerance=1e-5 density.probes=4
    python -m scripts.likelihood runs/toy/flow out=runs/likelihood/toy density.trace=exact
    python -m scripts.likelihood runs/digits/teacher out=runs/likelihood/digits outliers=true

The keys:
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import lab
from core.config import apply_overrides, parse
from core.errors import command_line
from core.files import write_text
from core.processes import check_device
from eval.likelihood.config import LikelihoodConfig
from eval.likelihood.measure import measure
from eval.likelihood.show import plot, table
from scripts.keys import keys_of


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.likelihood",
        description=__doc__ + "\n".join(f"    {key}" for key in keys_of(LikelihoodConfig)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="folder of a run, or another model")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="such as out=runs/likelihood")
    a = parser.parse_args()
    config = parse(LikelihoodConfig, apply_overrides({}, a.keys), "command line")
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    found = measure(config, lab.load(a.run, config.weights, device))
    out = Path(config.out)
    write_text(out / "table.md", table(found) + "\n")
    print(table(found))
    for file in plot(found, out / "likelihood.png"):
        print(file)


if __name__ == "__main__":
    main()
