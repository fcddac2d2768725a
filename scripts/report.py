"""Writes one report.html with everything about a curves file: it opens by double click and needs
neither network nor server.

    python -m scripts.report runs/quickstart
    python -m scripts.report results/digits --runs runs/digits --out digits.html

Trajectories, losses and configs come from the run folders; without them those parts of the page say
what is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from core.errors import command_line
from eval.report.document import write_report
from lab import load
from scripts.setting_options import check_between, numbers


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("curves", type=Path, help="a folder with curves.jsonl, or such a file")
    parser.add_argument(
        "--runs",
        type=Path,
        help="folder that holds the runs (default: beside the curves, else under runs/)",
    )
    parser.add_argument("--out", type=Path, help="default: report.html beside the curves")
    parser.add_argument(
        "--steps",
        default="1,4,16",
        help="step counts whose trajectories are shown (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=4,
        help="images that are followed; 0 = none (default: %(default)s)",
    )
    a = parser.parse_args()
    check_between("--images", a.images, 0, 64)
    steps = numbers(a.steps, int, "--steps")
    for one in steps:
        check_between("--steps", one, 1)
    curves = a.curves / "curves.jsonl" if a.curves.is_dir() else a.curves
    out = write_report(
        curves, a.out or curves.parent / "report.html", load, a.runs, steps, a.images
    )
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
