"""The table of methods: what each is, and needs, and reaches.

Nothing in it is written by hand: the paper is the bracket in the first paragraph of the method's
module, files come from lab.METHODS, needs from the published configs, and the rest from the
published rows."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from core.config import read_config
from core.errors import UserError
from eval.curves.series import by_protocol, measured, method_label
from eval.curves.style import read_styles
from eval.curves_file import read_measured
from eval.rows import Row, measure_label
from eval.text import markdown_table, number
from lab import METHODS, method_class

EVALUATIONS = (1, 2, 4)
DATASETS = ("digits", "fashion_mnist")
# Keys of a method's config that name another run
NEEDS = {"teacher": "teacher", "pairs": "pairs", "init": "start"}


def paper(method: str) -> str:
    """What the first paragraph of the method's module has in brackets with a year in them.

    Raises:
        UserError: it has none.
    """
    module = inspect.getmodule(method_class(method))
    first = " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
    papers = re.findall(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)", first)
    if not papers:
        raise UserError(f"{module.__file__}: its docstring names no paper, as (Ho et al. 2020)")
    return "; ".join(papers)


def short(paper: str) -> str:
    """ "Salimans and Ho 2022" of "Salimans and Ho 2022, arXiv 2202.00512, sec. 3"; of more than two
    authors the first is named. With the paper's number, a link to it."""
    name = paper.partition(", arXiv")[0].partition(', "')[0]
    name = re.sub(r"^([\w-]+), .* and [\w-]+ (\d{4})", r"\1 et al. \2", name)
    number = re.search(r"arXiv (\d{4}\.\d{4,5})", paper)
    return f"[{name}](https://arxiv.org/abs/{number[1]})" if number else name


def needs(method: str, config: dict | None) -> str:
    """What a run of the method needs; by its config, or without one what every run of it needs."""
    if config is None:
        fields = method_class(method).Config.model_fields
        named = [key for key in NEEDS if key in fields and fields[key].is_required()]
    else:
        named = [key for key in NEEDS if config.get(key)]
    return ", ".join(NEEDS[key] for key in named)


def evals_per_image(rows: list[Row]) -> str:
    """Network evaluations of training per training image, as counted: "3", or "3 to 4"."""
    found = {round(row.train_evals / row.train_images) for row in rows if row.train_images}
    return " to ".join(map(str, sorted({min(found), max(found)}))) if found else ""


def methods_table(results: Path) -> str:
    """Markdown: a line for each method with a published row or in lab.METHODS. Distances are the
    lowest of the method with so many network evaluations, over its samplers and runs."""
    groups = {
        name: by_protocol(read_measured(results / name / "curves.jsonl"))[0] for name in DATASETS
    }
    rows = {name: measured(group) for name, group in groups.items()}
    published = {row.method for some in rows.values() for row in some}
    known = [*read_styles(), *METHODS, *sorted(published)]
    header = ["method", "paper", "needs", "evaluations per training image"]
    for name, some in rows.items():
        first, *others = map(str, EVALUATIONS)
        header += [f"{name}, {measure_label(some[0])} at {first}", *others]
    body = [
        _line(method, rows, results)
        for method in dict.fromkeys(known)
        if method in published or method in METHODS
    ]
    lines = markdown_table(header, [["", "", *rest] for _, _, *rest in body], left=3).splitlines()
    links = [f"| {name} | {papers} |" for name, papers, *_ in body]  # cells of a table escape them
    return "\n".join(
        [*lines[:2], *(link + line.removeprefix("|  |  |") for link, line in zip(links, lines[2:]))]
    )


def _line(method: str, rows: dict[str, list[Row]], results: Path) -> list[str]:
    own = {name: [row for row in some if row.method == method] for name, some in rows.items()}
    config = _config(own, results)
    trained_by = config["name"] if config else method
    if trained_by not in METHODS:
        raise UserError(
            f"method '{method}' has rows, but neither a config nor a line in lab.METHODS"
        )
    cells = []
    for some in own.values():
        for nfe in EVALUATIONS:
            at = [row for row in some if row.nfe == nfe]
            best = min(at, key=lambda row: row.fid, default=None)
            cells.append(number(best.fid, best.bar) if best else "")
    file = METHODS[trained_by].partition(":")[0].replace(".", "/") + ".py"
    return [
        f"[{method_label(method)}]({file})",
        "; ".join(short(one) for one in paper(trained_by).split("; ")),
        needs(trained_by, config),
        evals_per_image([row for some in own.values() for row in some]),
        *cells,
    ]


def _config(own: dict[str, list[Row]], results: Path) -> dict | None:
    """The method's section in the published config of the first run that has one."""
    for name, some in own.items():
        for row in some:
            file = results / name / "configs" / f"{row.run}.yaml"
            if file.is_file():
                return read_config(file)["method"]
    return None
