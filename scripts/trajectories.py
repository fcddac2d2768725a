"""Draws how points go from noise to data, a panel for each run that a curves file holds points of.

python -m scripts.trajectories runs/toy
python -m scripts.trajectories results/toy --runs runs/toy --out trajectories.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lab
from core.errors import UserError, command_line
from eval.curves_file import read_measured
from eval.report.paths import plot_paths


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.trajectories",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder with curves.jsonl")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: the same)")
    parser.add_argument("--out", type=Path, help="default: trajectories.png in the folder")
    a = parser.parse_args()
    rows = read_measured(a.folder / "curves.jsonl")
    out = a.out or a.folder / "trajectories.png"
    if not plot_paths(rows, a.runs or a.folder, out, lab.load):
        raise UserError(
            f"{a.folder / 'curves.jsonl'} holds no points of the plane with their runs: give --runs; "
            "the ways of images are in report.html"
        )
    print(out)


if __name__ == "__main__":
    main()
