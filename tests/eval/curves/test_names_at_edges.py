"""Names with dollar signs, bars, HTML, newlines and control characters come out of every edge as
they are, and none breaks it."""

from __future__ import annotations

import html
import json
import re

import pytest

from eval.curves.plots import plot_all
from eval.curves.series import series_label
from eval.curves.table import markdown_tables, text_tables
from eval.curves_file import append_row
from eval.report.document import write_report
from eval.text import file_name, markdown, markdown_table, one_line, short_hash
from lab import load
from tests.helpers.command_lines import run_script
from tests.helpers.rows import row

ODD = {
    "formula": r"$\frac$ and $\badmacro$",
    "one dollar": "5$",
    "bar": "a|b",
    "html": "</script><script>alert(1)</script><b>x",
    "newline": "two\nlines",
    "bell": "bell\x07 escape\x1b[31m",
    "backwards": "\u202ereversed",
    "stars": "*emphasis* _more_ `code` [link](x) ~~gone~~",
}


def rows_of(name: str) -> list:
    given = {"precision": 0.9, "recall": 0.8, "seconds_per_image": 0.1, "device": name, "ema": name}
    given |= {"dataset": name, "extractor": name, "reference": f"{name} train"}
    sampled = [row(name, steps, 9.0 / steps, run=name, **given) for steps in (1, 2)]
    del given["ema"]
    return [row("floor", None, 1.0, run=name, **given), *sampled]


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_pictures_and_tables(name, tmp_path):
    rows = rows_of(name)
    assert len(plot_all(rows, tmp_path, tmp_path / "out")) == 6
    # matplotlib names the text that it draws as outlines in comments of the SVG
    drawn = (tmp_path / "out" / "curves.svg").read_text()
    shown = series_label(rows[1], rows)
    assert shown.isprintable() and shown == one_line(f"{name}, ddim")
    floor = html.escape(one_line(f"floor: {name}"), quote=False)
    assert f"<!-- {floor.replace('--', '- -')} -->" in drawn
    text = text_tables(rows).splitlines()
    assert len(text) == 4 and text[2].startswith(shown)
    (line,) = [line for line in markdown_tables(rows).splitlines() if ", ddim" in line]
    cells = re.split(r"(?<!\\)\|", line)
    assert len(cells) == 5  # a name, two numbers and the ends
    assert re.sub(r"\\(\W|_)", r"\1", cells[1].strip()) == shown
    assert not re.search(r"(?<!\\)[<>$*`]", cells[1])


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_report(name, tmp_path):
    for one in rows_of(name):
        append_row(tmp_path / "curves.jsonl", one)
    page = write_report(tmp_path / "curves.jsonl", tmp_path / "report.html", load).read_text()
    title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)[1]
    assert html.unescape(title).startswith(one_line(name)) and "<" not in title
    (block,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL
    )
    data = json.loads(block)
    assert data["series"][0]["name"] == one_line(f"{name}, ddim")
    assert data["rows"][1]["method"] == name and "<script>alert" not in page


def test_the_command_lines_take_them(tmp_path):
    for name in (ODD["bar"], ODD["html"]):
        for one in rows_of(name):
            append_row(tmp_path / "curves.jsonl", one)
    code, errors = run_script("plot", tmp_path / "curves.jsonl", "--out", tmp_path / "out")
    assert code == 0, errors
    assert all(file.parent == tmp_path / "out" for file in (tmp_path / "out").rglob("*.*"))
    given = ("--a", f"run={ODD['bar']}", "--b", f"run={ODD['html']}")
    code, errors = run_script("compare", tmp_path / "curves.jsonl", *given)
    assert code == 2 and "were measured differently" in errors and errors.count("\n") == 1


def test_text_helpers():
    assert one_line("a\nb\tc\x00 é") == r"a\nb\tc\x00 é"
    assert markdown("fashion_mnist dpm++2m 3.6e6") == "fashion_mnist dpm++2m 3.6e6"
    assert markdown_table(["a|b", "n"], [["<i>", "1"]]).splitlines() == [
        r"| a\|b | n |",
        "|---|---:|",
        r"| \<i\> | 1 |",
    ]
    assert file_name(["a/../b", "c d", 3]) == "a_.._b-c-d-3" and len(file_name("x" * 999)) == 100
    assert short_hash((1, "a")) != short_hash((1, "b"))
