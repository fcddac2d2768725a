"""Rows by the family of their method."""

from __future__ import annotations

from collections.abc import Iterable

from eval.curves.series import measured
from eval.curves.style import FAMILIES, TEACHER, style_of
from eval.rows import Row


def by_family(group: Iterable[Row]) -> dict[str, list[Row]]:
    """The measured rows of each family that has any, in the order of the panels."""
    rows = measured(group)
    families = {name: [r for r in rows if style_of(r.method).family == name] for name in FAMILIES}
    return {name: rows for name, rows in families.items() if rows}


def of_teacher(group: Iterable[Row]) -> list[Row]:
    """The rows that all families are compared with; [] without a teacher."""
    return by_family(group).get(TEACHER, [])
