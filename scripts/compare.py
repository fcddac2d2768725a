"""Compares two methods, or two runs, at each number of steps (or network evaluations) that both
were measured at.

    python -m scripts.compare runs/quickstart/curves.jsonl --a progressive --b consistency
    python -m scripts.compare old/curves.jsonl new/curves.jsonl --a progressive --by nfe
    python -m scripts.compare curves.jsonl --a sampler=ddim --b sampler=unipc

With two files, --a is looked for in the first and --b (default: the same as --a) in the second. The
difference counts as larger than its error from 2 standard errors on, or more where an error bar
comes from a few sets. Rows measured differently (n, extractor, reference) are refused.

Several training seeds of a run (flow-seed0, flow-seed1, ...) count as one thing: the error is then
that of training, paired where both sides have the same seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.errors import UserError, command_line
from eval.curves.compare import compare, comparison_table, seeds_words, select
from eval.curves.series import protocol_label
from eval.curves_file import read_measured


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("curves", type=Path, nargs="+", help="one or two curves files")
    parser.add_argument(
        "--a", required=True, help="a method, or key=value pairs with commas between them"
    )
    parser.add_argument("--b", help="the same for the other (default, with two files: as --a)")
    parser.add_argument("--by", default="steps", help="steps or nfe (default: %(default)s)")
    a = parser.parse_args()
    if len(a.curves) > 2:
        raise UserError(f"{len(a.curves)} curves files: give one or two")
    if not a.b and len(a.curves) == 1:
        raise UserError("--b is missing: what is --a compared with?")
    names = (a.a, a.b or a.a)
    rows = {file: read_measured(file) for file in dict.fromkeys(a.curves)}
    first, second = select(rows[a.curves[0]], names[0]), select(rows[a.curves[-1]], names[1])
    if names[0] == names[1]:
        names = (f"{names[0]} (1st)", f"{names[1]} (2nd)")
    notes = set()
    for protocol, points in compare(first, second, a.by, names).items():
        print(protocol_label([row for row in first if row.protocol == protocol]))
        print(comparison_table(points, a.by, names) if points else f"no {a.by} in common")
        notes |= {seeds_words(points, names)} if points else set()
    for note in sorted(notes):
        print(note, file=sys.stderr)


if __name__ == "__main__":
    main()
