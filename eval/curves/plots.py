"""All pictures of a curves file."""

from __future__ import annotations

import sys
from pathlib import Path

from core.errors import UserError
from eval.curves.coverage import covered, plot_coverage
from eval.curves.distances import plot_curves, timed
from eval.curves.families import by_family
from eval.curves.overview import plot_overview
from eval.curves.sample_grid import plot_samples
from eval.curves.series import by_protocol, measured, protocol_label
from eval.rows import Row
from eval.text import file_name


def plot_all(rows: list[Row], folder: Path, out: Path) -> list[Path]:
    """curves.png, overview.png, coverage.png and seconds.png (and .svg) and samples.png for each
    protocol among `rows`; from the second on, names say which. There is no overview.png of one
    family, no seconds.png where no row has its time, and no coverage.png where none has precision
    and recall.

    Raises:
        UserError: nothing but floors to draw.
    """
    groups = by_protocol(rows)
    if not groups:
        raise UserError("no measured points to draw: run python -m scripts.evaluate first")
    written, drawn, suffixes = [], set(), set()
    for i, group in enumerate(groups):
        suffix = _suffix(group, i, suffixes)
        suffixes.add(suffix)
        written += plot_curves(group, out / f"curves{suffix}.png")
        print(f"{written[-2]}: {protocol_label(group)}", file=sys.stderr)
        if len(by_family(group)) > 1:
            written += plot_overview(group, out / f"overview{suffix}.png")
        if measured(covered(group)):
            written += plot_coverage(covered(group), out / f"coverage{suffix}.png")
        if measured(timed(group)):
            written += plot_curves(timed(group), out / f"seconds{suffix}.png", "seconds")
        shown = frozenset(row.samples for row in group if row.samples)
        if shown not in drawn:
            drawn.add(shown)
            written += plot_samples(group, folder, out / f"samples{suffix}.png")
    return written


def _suffix(group: list[Row], place: int, taken: set[str]) -> str:
    """What tells a group's files from those of the others."""
    if place == 0:
        return ""
    protocol = group[0].protocol
    words = [protocol.dataset, protocol.extractor, protocol.n]
    if "-" + file_name(words) in taken:
        words.append(protocol.reference.split()[-1] if protocol.reference.split() else "")
    suffix = "-" + file_name(words)
    return f"{suffix}-{place}" if suffix in taken else suffix  # hashes differ, which name nothing
