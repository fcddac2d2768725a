"""Rows in groups that may be drawn together, and the one name of a series in tables, pictures and
messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from core.runs import weights_in_words
from core.setting import Setting
from eval.curves.seeds import pooled
from eval.curves.style import GENERATORS, style_of
from eval.rows import Row, distance_label
from eval.settings import grid_name
from eval.text import counted, one_line


def measured(rows: Iterable[Row]) -> list[Row]:
    """The rows but for floors."""
    return [row for row in rows if not row.is_floor]


def floor_of(rows: Iterable[Row]) -> Row | None:
    """The floor of real images as they are."""
    return next((row for row in floors_of(rows) if not row.is_reconstruction), None)


def floors_of(rows: Iterable[Row]) -> list[Row]:
    """That of real images as they are first, and then those of reconstructions."""
    return sorted((row for row in rows if row.is_floor), key=lambda row: row.is_reconstruction)


def by_protocol(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows grouped by protocol, in order of appearance: nothing measured differently ends up in one
    picture or table. Floors alone are no group.

    Of several rows of one series and number of steps only the last counts: the run was measured
    again after more training, or with another error bar. Training seeds of one thing are one row,
    their mean (eval/curves/seeds.py).

    A floor joins every group that differs from it in n alone (a test split may be smaller than n);
    whoever shows it there says so.
    """
    points: dict[tuple, dict[tuple, Row]] = {}
    for row in measured(rows):
        points.setdefault(row.protocol, {})[row.series, row.steps] = row
    groups = [pooled(group.values()) for group in points.values()]
    floors = [row for row in rows if row.is_floor]
    for group in groups:
        protocol = group[0].protocol
        fitting = [row for row in floors if row.protocol._replace(n=protocol.n) == protocol]
        for codec in dict.fromkeys(row.codec for row in fitting):
            alike = [row for row in fitting if row.codec == codec]
            same_n = [row for row in alike if row.n == protocol.n]
            group.extend(same_n[-1:] or alike[-1:])
    return groups


def series_of(rows: Iterable[Row]) -> dict[tuple, list[Row]]:
    """The measured points by series, in order of appearance, each sorted by NFE."""
    series: dict[tuple, list[Row]] = {}
    for row in measured(rows):
        series.setdefault(row.series, []).append(row)
    return {key: sorted(points, key=lambda row: row.nfe) for key, points in series.items()}


def method_label(method: str) -> str:
    return style_of(method).label or method


def _sampler(setting: Setting) -> str:
    """The sampler with its options: "ddim eta 0.5"."""
    options = sorted(setting.options.items())
    return " ".join([setting.sampler, *(f"{name} {value:g}" for name, value in options)])


def series_label(row: Row, among: Iterable[Row]) -> str:
    """The name of the row's series: its method and sampler, and of the rest what tells it from
    others `among`.

    The sampler goes without saying (style.yaml) for generators, and for methods of which `among`
    has no rows but of their usual one.
    """
    if row.is_floor:
        return one_line(f"{row.method}: {row.run} (n = {row.n})")
    rows = measured(among)
    style = style_of(row.method)
    used = {_sampler(r.setting) for r in rows if r.method == row.method} | {_sampler(row.setting)}
    usual = style.family == GENERATORS or used == {style.sampler}

    def named(r: Row) -> list[str]:
        words = [method_label(r.method)]
        if not (usual and len(used) == 1 and r.method == row.method):
            words.append(_sampler(r.setting))
        if guidance := r.setting.guidance_words():
            words.append(guidance)
        return words

    words = named(row)
    alike = [r for r in rows if named(r) == words]

    def differ(value: Callable[[Row], object]) -> bool:
        return len({value(r) for r in alike}) > 1

    if differ(lambda r: r.method):
        words.append(f"method {row.method}")
    if differ(lambda r: (r.run, r.config_sha256)):
        words.append(f"run {row.run}")
        if len({r.config_sha256 for r in alike if r.run == row.run}) > 1:
            words[-1] += f" {str(row.config_sha256)[:6]}"  # folders of one name
    if differ(lambda r: r.ema):
        words.append(weights_in_words(row.ema, None))  # a series may have many half-lives
    if differ(lambda r: r.setting.threshold):
        words.append(f"threshold {row.setting.threshold}")
    if differ(lambda r: r.setting.grid):
        words.append(f"grid {grid_name(row.setting)}")
    if differ(lambda r: r.seed):
        words.append(f"seed {row.seed}")
    return one_line(", ".join(words))


def point_label(row: Row, among: Iterable[Row]) -> str:
    """The name of the row's series with its number of steps; a floor's alone."""
    name = series_label(row, among)
    return name if row.is_floor else f"{name}, {counted(row.steps, 'step')}"


def protocol_label(group: list[Row]) -> str:
    """The protocol of one group: "FD@449, digits-cnn features (sha256 1a2b3c4d), reference digits
    train"."""
    row = next(iter(measured(group)), group[0])
    return one_line(
        f"{distance_label(row)} (sha256 {row.extractor_sha256[:8]}), reference {row.reference}"
    )
