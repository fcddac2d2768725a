"""Small multiples: one panel per family, with shared axes and a common reference."""

from __future__ import annotations

from typing import NamedTuple

from eval.curves.canvas import pyplot
from eval.curves.families import by_family
from eval.curves.labels import Curve
from eval.curves.series import method_label, series_label
from eval.curves.style import FAMILIES, TEACHER
from eval.rows import Row
from eval.text import one_line

BEST, GREY, DARK = "teacher's best solver", "#D2D2D2", "#777777"  # drawn behind the curves


class Panel(NamedTuple):
    """The axes that a family, by its name, is drawn in.

    alone: whether the figure has no other panel. lowest: whether none is below it.
    """

    axes: object
    family: str
    rows: list[Row]
    alone: bool
    lowest: bool

    def label(self, row: Row) -> str:
        """The name of a row's series; without the method where the panel has one only and says
        so."""
        methods = {r.method for r in self.rows}
        words = series_label(row, self.rows)
        return words if len(methods) > 1 else words.removeprefix(f"{_one(row)}, ")


def _one(row: Row) -> str:
    return one_line(method_label(row.method))


def draw_reference(panel: Panel, best: Curve) -> Curve:
    """Draws the teacher's best in grey behind a panel's curves, and returns what its name needs:
    none where its solvers are the panel."""
    panel.axes.plot(best.x, best.y, "o-", color=GREY, linewidth=4.5, markersize=4.5, zorder=1)
    return best._replace(words="") if panel.family == TEACHER else best


def panels(group: list[Row], single: tuple[float, float], size: tuple[float, float]):
    """A figure, and a panel for each family among the rows.

    Args:
        single: inches of the figure if there is one family. size: inches of a panel otherwise;
            there are two in a line, so that words stay legible where the picture is shown small.
    """
    plt, families = pyplot(), by_family(group)
    alone = len(families) == 1
    columns = 1 if alone else 2
    lines = -(-len(families) // columns)
    figure, grid = plt.subplots(
        lines, columns, sharex=True, sharey=True, squeeze=False, layout="constrained",
        figsize=single if alone else (columns * size[0], lines * size[1]),
    )  # fmt: skip
    for axes in grid.flat[len(families) :]:
        axes.set_visible(False)
    found = []
    for i, (axes, (name, rows)) in enumerate(zip(grid.flat, families.items())):
        names = sorted({_one(row) for row in rows})
        title = FAMILIES[name].title + (f": {names[0]}" if len(names) == 1 else "")
        if not alone:
            axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        lowest = i + columns >= len(families)
        axes.tick_params(labelbottom=lowest)
        found.append(Panel(axes, name, rows, alone, lowest))
    return figure, found
