"""How a series looks in every plot: the colour says the method, the marker the sampler."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from core.config import Strict, parse, read_config
from core.sampling.solvers import SAMPLERS

STYLE = Path(__file__).with_name("style.yaml")
SPARE = ("#000000", "#A5AA99", "#882255", "#44AA99", "#999933", "#F0E442")  # yellow last
GREYS = ("#222222", "#666666", "#999999", "#444444", "#808080", "#B0B0B0")
# For the samplers of a method in greys that has the picture to itself, one each.
COLORS = (
    "#222222", "#999999", "#E69F00", "#8C564B", "#CC79A7", "#999933",
    "#0072B2", "#009E73", "#56B4E9", "#44AA99", "#D55E00", "#882255", "#332288",
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


class MethodStyle(Strict):
    """One line of style.yaml."""

    label: str | None = None
    color: str | None = None
    neutral: bool = False
    generator: bool = False
    """not sampled in steps: its sampler goes without saying"""
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


def look_of(
    method: str, sampler: str, methods: list[str], styles: dict[str, MethodStyle] | None = None
) -> Look:
    """The look of a method with a sampler; `methods`: all in the picture, so that unlisted ones do
    not share a colour, and one that is alone and drawn in greys otherwise has a colour a
    sampler."""
    styles = read_styles() if styles is None else styles
    style = styles.get(method, MethodStyle())
    names = list(SAMPLERS)
    place = names.index(sampler) if sampler in names else 0
    marker = MARKERS[place % len(MARKERS)]
    label = style.label or method
    if style.neutral and set(methods) == {method}:
        return Look(COLORS[place % len(COLORS)], marker, DASHES[0], label)
    if style.neutral:
        return Look(GREYS[place % len(GREYS)], marker, DASHES[place % len(DASHES)], label)
    unlisted = sorted(
        m for m in set(methods) if not (m in styles and (styles[m].color or styles[m].neutral))
    )
    color = style.color or SPARE[unlisted.index(method) % len(SPARE)]
    return Look(color, marker, "-", label)
