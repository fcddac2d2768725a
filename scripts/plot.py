"""Draws curves.png, overview.png, coverage.png, seconds.png (each also as .svg) and samples.png from
a curves file, without sampling anything.

    python -m scripts.plot runs/quickstart/curves.jsonl
    python -m scripts.plot a/curves.jsonl b/curves.jsonl --out pictures --markdown table.md \\
        --relative-to teacher
    python -m scripts.plot runs/quickstart/curves.jsonl --only run=teacher --out teacher
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from core.errors import UserError, command_line
from core.files import check_place, write_text
from core.pictures import samples_file
from eval.curves.compare import select
from eval.curves.plots import plot_all
from eval.curves.ranking import ranking_tables
from eval.curves.ratios import ratio_tables
from eval.curves.table import markdown_tables
from eval.curves.trade_off import trade_off_tables
from eval.curves_file import read_measured
from eval.rows import Row


def read_together(files: list[Path]) -> list[Row]:
    """The rows of all files, every row's samples relative to the first file's folder. A row may
    come from anywhere: samples that are no picture beside its file are left out, with a warning."""
    home, rows = files[0].parent, []
    for file in files:
        for row in read_measured(file):
            if row.samples:
                row = row.model_copy(update={"samples": _moved(file.parent, row.samples, home)})
            rows.append(row)
    return rows


def _moved(folder: Path, samples: str, home: Path) -> str | None:
    try:
        return os.path.relpath(samples_file(folder, samples), home)
    except UserError as error:
        print(f"warning: {error}; its cell stays empty", file=sys.stderr)
        return None


def draw(
    curves: list[Path],
    out: Path,
    markdown: Path | None = None,
    relative_to: str | None = None,
    only: str | None = None,
) -> list[Path]:
    """Draws the rows of several curves files together, and writes their tables; returns the files
    that were written.

    Raises:
        UserError: a file that is not there or holds nothing to draw, or a selector without rows.
    """
    rows = read_together(curves)
    if only:
        rows = select(rows, only) + [row for row in rows if row.is_floor]
    ratios = [ratio_tables(rows, relative_to)] if relative_to else []  # refused ahead of all writes
    check_place(out, folder=True)
    if markdown:
        check_place(markdown)
    written = plot_all(rows, curves[0].parent, out)
    if markdown:
        tables = [markdown_tables(rows), *ratios, ranking_tables(rows), trade_off_tables(rows)]
        write_text(markdown, "\n\n".join(tables) + "\n")
        written.append(markdown)
    return written


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "curves", type=Path, nargs="+", help="curves.jsonl, or several to draw together"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the pictures (default: that of the first curves file)"
    )
    parser.add_argument(
        "--markdown", type=Path, help="also write the tables, as Markdown, to this file"
    )
    parser.add_argument(
        "--relative-to",
        metavar="RUN",
        help="and a table of ratios to the best that the run of this name reaches",
    )
    parser.add_argument(
        "--only",
        metavar="SELECTOR",
        help="some rows: a method, or key=value pairs with commas between them, and their floors",
    )
    a = parser.parse_args()
    if a.relative_to and not a.markdown:
        raise UserError("--relative-to adds a table to the file of --markdown: name one")
    out = a.out or a.curves[0].parent
    for path in draw(a.curves, out, a.markdown, a.relative_to, a.only):
        print(path)


if __name__ == "__main__":
    main()
