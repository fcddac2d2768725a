"""matplotlib as every picture here uses it. Loaded late: nothing else needs it."""

from __future__ import annotations

import textwrap
from pathlib import Path

from core.errors import UserError
from core.files import whole_file
from eval.curves.series import measured, method_label
from eval.curves.style import Look, look_of
from eval.rows import Row
from eval.text import one_line

SMALL = {"fontsize": 7.5, "color": "#555555"}  # notes under a picture


def pyplot():
    """matplotlib.pyplot without a screen; raises UserError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "0",
            "text.parse_math": False,  # names may hold dollar signs
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 12,
        }
    )
    from matplotlib import pyplot

    return pyplot


def save(figure, path: Path, vector: bool = True) -> list[Path]:
    """Writes the picture as PNG, with `vector` also as SVG beside it, and returns the files. Each
    is whole or as it was."""
    files = {path: {"format": "png", "dpi": 160}}
    if vector:
        files[path.with_suffix(".svg")] = {"format": "svg", "metadata": {"Date": None}}
    for file, options in files.items():
        with whole_file(file) as partial:
            figure.savefig(partial, **options)
    pyplot().close(figure)
    return list(files)


def look(row: Row, group: list[Row]) -> Look:
    return look_of(row.method, row.sampler, [r.method for r in measured(group)])


def subject(group: list[Row]) -> str:
    """What a title begins with: the data set, and the method where there is one only."""
    rows = measured(group)
    alone = len({row.method for row in rows}) == 1
    words = [rows[0].dataset, method_label(rows[0].method)] if alone else [rows[0].dataset]
    return one_line(", ".join(words))


def broken(words: str, width: int) -> str:
    """The words in lines of at most that many letters."""
    return "\n".join(textwrap.wrap(words, width))
