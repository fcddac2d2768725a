"""Compares two methods, or two runs, at each number of steps (or network evaluations) that both
were measured at.

    python -m scripts.compare runs/quickstart/curves.jsonl --a progressive --b consistency python -m
    scripts.compare old/curves.jsonl new/curves.jsonl --a progressive --by nfe python -m
    scripts.compare curves.jsonl --a method=ddpm,sampler=ddim --b method=ddpm,sampler=unipc

With two files, --a is looked for in the first and --b (default: the same as --a) in the second. The
difference counts as larger than its error from 2 standard errors on, or more where an error bar
comes from a few sets. Rows measured differently (n, extractor, reference) are refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from core.errors import UserError, command_line
from eval.curves.compare import compare, comparison_table, select
from eval.curves.table import protocol_words
from eval.rows import PROTOCOL, read_rows


def _read(file: Path) -> list[dict]:
    rows = read_rows(file)
    if not rows:
        raise UserError(f"{file} has no rows: python -m scripts.evaluate writes it")
    return rows


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
    first, second = (
        select(_read(file), name) for file, name in zip((a.curves[0], a.curves[-1]), names)
    )
    if names[0] == names[1]:
        names = (f"{names[0]} (1st)", f"{names[1]} (2nd)")
    shown = [
        row for row in first if any(all(row[k] == other[k] for k in PROTOCOL) for other in second)
    ]
    groups: dict[tuple, dict] = {}
    for row in shown:
        groups.setdefault(tuple(row[k] for k in PROTOCOL), row)
    for points, row in zip(compare(first, second, a.by, names), groups.values(), strict=True):
        print(protocol_words([row]))
        print(comparison_table(points, a.by, names) if points else f"no {a.by} in common")


if __name__ == "__main__":
    main()
