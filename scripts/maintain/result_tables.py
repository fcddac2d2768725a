"""Fills the tables of README.md and results/README.md from the published rows.

    python -m scripts.maintain.result_tables

A table stands between two comments, and the first says what it shows:

    <!-- table fashion_mnist curve n=10000 extractor=fashion-cnn --> ... <!-- end -->
    <!-- table fashion_mnist curve steps=[1,4,50] ratios=[1,4] --> ... <!-- end -->
    <!-- table fashion_mnist ratios steps=[1,2,4] families=[teacher,students] --> ... <!-- end -->
    <!-- table digits trade-off points=[ppca:1,ddpm:1000] --> ... <!-- end -->
    <!-- methods --> ... <!-- end -->

The words are a folder in results/, the kind of table, and options, which are the fields of
`Options` below."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from core.config import Strict, apply_overrides, parse
from core.errors import UserError, command_line
from core.files import read_text, write_text
from eval.curves.ratios import best_of, ratio_cells
from eval.curves.series import by_protocol, measured, protocol_label
from eval.curves.style import style_of
from eval.curves.table import curve_cells
from eval.curves.trade_off import trade_off_cells
from eval.curves_file import read_measured
from eval.rows import Row
from eval.text import markdown_table
from scripts.maintain.methods_table import methods_table

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "results/README.md")
MARKER = re.compile(r"<!-- (table [^\n]*?|methods) -->\n(.*?)<!-- end -->", re.DOTALL)


class Options(Strict):
    """Which rows and columns a marker wants."""

    n: int | None = None
    """images per set; null: of the only protocol that fits"""
    extractor: str | None = None
    """likewise"""
    steps: list[int] | None = None
    """columns of curve and ratios; null: all"""
    families: list[Literal["teacher", "students", "flows", "generators", "other"]] | None = None
    """lines of curve and ratios: families of methods (eval/curves/style.yaml); null: all"""
    ratios: list[int] = []
    """more columns of curve: ratios at these numbers of steps"""
    over: str = "teacher"
    """the run whose lowest distance ratios are taken to"""
    points: list[str] = []
    """rows of trade-off, "METHOD:EVALUATIONS": the best of the method with so many"""


def curve(group: list[Row], options: Options) -> str:
    shown = _shown(group, options)
    header, *body = curve_cells(shown, options.steps)
    if options.ratios:
        cells = ratio_cells(shown, _best(group, options), options.ratios)
        at = {name: values for name, *values in cells[1:]}
        first, *rest = map(str, options.ratios)
        header += [f"over the best of {options.over}: {first}", *rest]
        body = [[*line, *at.get(line[0], [""] * len(options.ratios))] for line in body]
    return markdown_table(header, body)


def ratios(group: list[Row], options: Options) -> str:
    shown = _shown(group, options)
    steps = options.steps or sorted({row.steps for row in measured(shown)})
    header, *body = ratio_cells(shown, _best(group, options), steps)
    return markdown_table(header, body)


def _shown(group: list[Row], options: Options) -> list[Row]:
    """The rows of the families that are wanted, and the floor."""
    wanted = options.families
    return [r for r in group if r.is_floor or not wanted or style_of(r.method).family in wanted]


def _best(group: list[Row], options: Options) -> Row:
    best = best_of(group, options.over)
    if best is None:
        raise UserError(f"no row of {protocol_label(group)} is of run '{options.over}'")
    return best


def trade_off(group: list[Row], options: Options) -> str:
    chosen = []
    for point in options.points:
        method, _, nfe = point.partition(":")
        fitting = [r for r in measured(group) if r.method == method and f"{r.nfe:g}" == nfe]
        if not fitting:
            raise UserError(f"points: no row is of '{point}' (METHOD:EVALUATIONS)")
        chosen.append(min(fitting, key=lambda row: row.fid))
    header, *body = trade_off_cells(group, chosen)
    return markdown_table(header, body)


KINDS: dict[str, Callable[[list[Row], Options], str]] = {
    "curve": curve,
    "ratios": ratios,
    "trade-off": trade_off,
}


def table(words: str, results: Path) -> str:
    """The Markdown that a marker with these words stands for.

    Raises:
        UserError: the words are wrong, or the rows of no or of several protocols fit.
    """
    if words == "methods":
        return methods_table(results)
    _, folder, *rest = words.split()
    kind, *given = rest or [""]
    where = f"<!-- {words} -->"
    if kind not in KINDS:
        raise UserError(f"{where}: no table of kind '{kind}': one of {', '.join(KINDS)}")
    options = parse(Options, apply_overrides({}, given), where)
    rows = [
        row
        for row in read_measured(results / folder / "curves.jsonl")
        if options.n in (None, row.n) and options.extractor in (None, row.extractor)
    ]
    groups = by_protocol(rows)
    if len(groups) != 1:
        found = "; ".join(map(protocol_label, groups)) or "none"
        raise UserError(f"{where}: n= and extractor= leave one protocol, not {found}")
    return KINDS[kind](groups[0], options)


def filled(page: str, results: Path) -> str:
    """The page with every table made anew from the rows in `results`."""
    if len(MARKER.findall(page)) != page.count("<!-- table ") + page.count("<!-- methods -->"):
        raise UserError("a table's marker has no <!-- end -->")
    return MARKER.sub(
        lambda found: f"<!-- {found[1]} -->\n\n{table(found[1], results)}\n\n<!-- end -->", page
    )


@command_line
def main() -> None:
    argparse.ArgumentParser(
        prog="python -m scripts.maintain.result_tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    for name in PAGES:
        old = read_text(ROOT / name)
        new = filled(old, ROOT / "results")
        if new != old:
            write_text(ROOT / name, new)
        print(f"{name}: {'written' if new != old else 'as it was'}")


if __name__ == "__main__":
    main()
