"""Tables of results/README.md and of README.md: as the published rows say, and noticed when these
change."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest

import lab
from core.errors import UserError
from scripts.maintain import result_tables
from scripts.maintain.methods_table import EVALUATIONS, methods_table, needs, paper, short
from scripts.maintain.result_tables import filled, table

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "results"
PAGES = [ROOT / name for name in result_tables.PAGES]


@pytest.fixture
def results(tmp_path) -> Path:
    """A copy of the published rows and configs, to be changed."""
    for name in ("digits", "fashion_mnist"):
        shutil.copytree(RESULTS / name / "configs", tmp_path / name / "configs")
        shutil.copy2(RESULTS / name / "curves.jsonl", tmp_path / name)
    return tmp_path


def _rows(name: str, **wanted) -> list[dict]:
    text = (RESULTS / name / "curves.jsonl").read_text(encoding="utf-8")
    rows = map(json.loads, text.splitlines())
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _change(results: Path, name: str, change, **wanted) -> None:
    """Rewrites the rows that have the wanted values."""
    file = results / name / "curves.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    chosen = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert chosen
    for row in chosen:
        change(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _cells(markdown: str) -> dict[str, list[str]]:
    """The cells of each line by its first one."""
    lines = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("| ")]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_pages_are_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text, RESULTS) == text, "run python -m scripts.maintain.result_tables"


def test_a_changed_row_is_noticed(results):
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert filled(page, results) == page

    def other(row):
        row["fid"] = 3.21

    _change(results, "fashion_mnist", other, method="progressive", steps=2, extractor="fashion-cnn")
    lines = set(filled(page, results).splitlines()) - set(page.splitlines())
    assert len(lines) == 2  # of the curve, and of the ratios
    assert any("3.21 ± 0.6" in line for line in lines)
    assert all(line.startswith("| progressive distillation |") for line in lines)


def test_cells_are_those_of_the_rows():
    words = "table fashion_mnist curve n=10000 extractor=fashion-cnn"
    cells = _cells(table(words, RESULTS))
    steps = [int(step) for step in cells["steps"]]
    for sampler in ("ddpm", "ddim", "heun", "unipc"):
        for row in _rows("fashion_mnist", sampler=sampler, extractor="fashion-cnn", n=10000):
            if row["method"] == "ddpm":
                cell = cells[f"DDPM teacher, {sampler}"][steps.index(row["steps"])]
                assert float(cell.split(" ± ")[0]) == pytest.approx(row["fid"], rel=5e-3)


def test_ratios_are_to_the_best_of_the_run():
    words = "table fashion_mnist curve extractor=inception-v3-compat-bf16 steps=[1] ratios=[1,4]"
    cells = _cells(table(words, RESULTS))
    assert cells["steps"] == ["1", "over the best of teacher: 1", "4"]
    rows = _rows("fashion_mnist", extractor="inception-v3-compat-bf16")
    best = min(row["fid"] for row in rows if row["run"] == "teacher")
    (row,) = [r for r in rows if r["method"] == "consistency" and r["steps"] == 4]
    value, error = map(float, cells["consistency distillation"][2].split(" ± "))
    assert value == pytest.approx(row["fid"] / best, abs=0.005)
    stds = [r["fid_std"] / r["fid"] for r in (row, min(rows, key=lambda r: abs(r["fid"] - best)))]
    assert error == pytest.approx(value * math.hypot(*stds), abs=0.006)


def test_families_and_points_choose_rows():
    words = "table fashion_mnist ratios n=10000 extractor=fashion-cnn steps=[1]"
    some = _cells(table(f"{words} families=[students]", RESULTS))
    assert some.keys() == {"steps", "progressive distillation", "consistency distillation"}
    lines = _cells(table("table digits trade-off points=[gan:1,ddpm:1000]", RESULTS))
    assert [*lines][1:] == [
        "GAN, 1 step",
        "DDPM teacher, ddpm, 1000 steps",
        "floor: digits test (n = 300)",
    ]
    (gan,) = _rows("digits", method="gan")
    assert lines["GAN, 1 step"][3] == f"{gan['precision']:.3f}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("table digits curves", "no table of kind 'curves': one of curve"),
        ("table digits", "no table of kind ''"),
        ("table digit curve", "digit/curves.jsonl does not exist"),
        ("table fashion_mnist curve", "leave one protocol, not FD@10000"),
        ("table digits curve n=7", "leave one protocol, not none"),
        ("table digits curve step=[1]", "step"),
        ("table digits curve families=[students,teachers]", "families"),
        ("table digits curve ratios=[1] over=techer", "is of run 'techer'"),
        ("table digits trade-off points=[gan:2]", "no row is of 'gan:2'"),
    ],
)
def test_wrong_words_in_a_marker_are_refused(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        filled(f"<!-- {words} -->\n<!-- end -->\n", RESULTS)


def test_a_marker_without_end_is_refused():
    with pytest.raises(UserError, match="no <!-- end -->"):
        filled("<!-- table digits curve -->\n\nwords\n", RESULTS)


def test_text_around_tables_stays():
    page = "before\n\n<!-- methods -->\nold\n<!-- end -->\n\nafter <!-- a comment -->\n"
    new = filled(page, RESULTS)
    assert new.startswith("before\n\n<!-- methods -->\n\n| method |")
    assert new.endswith("|\n\n<!-- end -->\n\nafter <!-- a comment -->\n")
    assert filled(new, RESULTS) == new and "old" not in new


def test_methods_table_counts_and_finds(results):
    lines = _cells(methods_table(results))
    assert len(lines) == 1 + len({*lab.METHODS, "reflow"})
    gan = lines["[GAN](baselines/gan.py)"]
    (row,) = _rows("digits", method="gan")
    assert gan[:3] == [
        "[Huang et al. 2024](https://arxiv.org/abs/2501.05441)",
        "",
        f"{row['train_evals'] / row['train_images']:.0f}",
    ]
    assert lines["[progressive distillation](students/progressive.py)"][1] == "teacher"
    # trained by another method's class
    assert lines["[reflow](flows/rectified.py)"][1] == "pairs, start"
    # the lowest of all solvers with so many evaluations: Heun's 2 steps are 3
    teacher = _rows("fashion_mnist", method="ddpm", extractor="fashion-cnn", n=10000)
    lowest = [min(r["fid"] for r in teacher if r["nfe"] == nfe) for nfe in EVALUATIONS]
    shown = [float(cell.split(" ± ")[0]) for cell in lines["[DDPM teacher](teachers/ddpm.py)"][6:]]
    assert shown == pytest.approx(lowest, rel=5e-3)

    def dearer(row):
        row["train_evals"] = 7 * row["train_images"]

    _change(results, "digits", dearer, method="vae")
    assert _cells(methods_table(results))["[VAE](baselines/vae.py)"][2] == "3 to 7"


def test_papers_and_needs_of_every_method():
    for method in lab.METHODS:
        assert re.search(r"(19|20)\d\d", paper(method)), method
        assert "\n" not in paper(method) and "(" not in paper(method)
    assert needs("consistency", None) == "teacher" and needs("ddpm", None) == ""
    assert needs("rectified-flow", {"pairs": None, "init": "runs/a"}) == "start"


def test_papers_are_short():
    assert short("Ho, Jain and Abbeel 2020, arXiv 2006.11239, alg. 1") == (
        "[Ho et al. 2020](https://arxiv.org/abs/2006.11239)"
    )
    assert short("Salimans and Ho 2022, arXiv 2202.00512, sec. 3").startswith(
        "[Salimans and Ho 2022]"
    )
    assert short('Tipping and Bishop 1999, "A Title"') == "Tipping and Bishop 1999"


def test_a_method_without_a_paper_is_refused(monkeypatch):
    monkeypatch.setattr("flows.meanflow.__doc__", "MeanFlow, by hearsay.\n\n(Geng et al. 2025)")
    with pytest.raises(UserError, match="flows/meanflow.py: its docstring names no paper"):
        paper("meanflow")


def test_rows_of_an_unknown_method_are_refused(results):
    def other(row):
        row["method"] = row["run"] = "mystery"

    _change(results, "digits", other, method="gan")
    with pytest.raises(UserError, match="'mystery' has rows, but neither a config nor a line"):
        methods_table(results)
