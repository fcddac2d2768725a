"""How a series looks in every plot: the colour says the method, the marker the sampler."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from core.config import Strict, parse, read_config
from core.sampling.solvers import SAMPLERS

STYLE = Path(__file__).with_name("style.yaml")
# For methods without a colour of their own, yellow last
SPARE = ("#000000", "#882255", "#44AA99", "#999933", "#A5AA99", "#661100", "#6699CC", "#F0E442")
GREYS = ("#222222", "#666666", "#999999", "#444444", "#808080", "#B0B0B0")
# For the samplers of teachers that have the picture to themselves, one each.
COLORS = (
    "#222222", "#999999", "#E69F00", "#8C564B", "#CC79A7", "#999933",
    "#0072B2", "#009E73", "#56B4E9", "#44AA99", "#D55E00", "#882255", "#332288",
    "#117733", "#AA4499", "#661100",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (1, 1)),
    (0, (7, 2)),
    (0, (3, 1, 1, 1)),
    (0, (2, 2)),
    (0, (9, 3)),
)


class Family(NamedTuple):
    """Methods that share a panel: its title, and the family's colour where families are drawn and
    not methods."""

    title: str
    color: str


TEACHER = "teacher"  # its solvers are what every other family is compared with
GENERATORS = "generators"  # not sampled in steps: a sampler says nothing
# In the order of their panels
FAMILIES = {
    TEACHER: Family("solvers of the teacher", "#555555"),
    "students": Family("students of the teacher", "#D55E00"),
    "flows": Family("flows and flow maps", "#0072B2"),
    GENERATORS: Family("generators of another kind", "#7F3C8D"),
    "other": Family("other methods", "#009E73"),
}


class MethodStyle(Strict):
    """One line of style.yaml."""

    label: str | None = None
    color: str | None = None
    family: Literal["teacher", "students", "flows", "generators", "other"] = "other"
    sampler: str | None = None
    """the sampler that goes without saying where the method was measured with no other"""


class Look(NamedTuple):
    """What matplotlib is told about a series."""

    color: str
    marker: str
    dashes: str | tuple
    label: str


@cache
def read_styles(path: Path = STYLE) -> dict[str, MethodStyle]:
    return {
        name: parse(MethodStyle, values, f"{path}, {name}")
        for name, values in read_config(path).items()
    }


def style_of(method: str) -> MethodStyle:
    return read_styles().get(method, MethodStyle())


def look_of(
    method: str, sampler: str, methods: list[str], styles: dict[str, MethodStyle] | None = None
) -> Look:
    """The look of a method with a sampler.

    Args:
        methods: all in the picture. Those of one family that have no colour in style.yaml do not
            share one. Teachers are drawn in greys, one line style per sampler, and in colours, one
            per sampler, where nothing else is drawn.
    """
    styles = read_styles() if styles is None else styles

    def style(name: str) -> MethodStyle:
        return styles.get(name, MethodStyle())

    own, names, methods = style(method), list(SAMPLERS), {*methods, method}
    place = names.index(sampler) if sampler in names else 0
    marker, label = MARKERS[place % len(MARKERS)], own.label or method
    if own.family == TEACHER:
        teachers = sorted(m for m in methods if style(m).family == TEACHER)
        if len(methods) == len(teachers):
            dashes = DASHES[teachers.index(method) % len(DASHES)]
            return Look(COLORS[place % len(COLORS)], marker, dashes, label)
        return Look(GREYS[place % len(GREYS)], marker, DASHES[place % len(DASHES)], label)
    if own.color:
        return Look(own.color, marker, DASHES[0], label)
    rest = sorted(m for m in methods if style(m).family == own.family and not style(m).color)
    again, place = divmod(rest.index(method), len(SPARE))
    return Look(SPARE[place], marker, DASHES[again % len(DASHES)], label)
