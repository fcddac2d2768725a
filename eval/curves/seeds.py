"""Training seeds: runs that differ in nothing else are seeds of one thing. Its figure is their
mean, and its error that of the mean. Tables, pictures, comparisons and studies take all of it from
here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np

from eval.rows import Protocol, Row

# What tells points apart
KEYS = (
    "method", "run", "ema", "sampler", "guidance_scale", "guidance_interval", "threshold", "grid",
    "config_sha256", "seed", "train_seed", *Protocol._fields, "steps", "weights_sha256",
    "fid_error", "train_images",
)  # fmt: skip
# What of it may differ between training seeds of one thing
OF_A_SEED = ("train_seed", "run", "config_sha256", "seed", "weights_sha256")


def seeded(run: str, seed: int) -> str:
    """The name of a run that is trained with another seed: "flow" with 0, "flow-seed3" with 3."""
    return f"{run}-seed{seed}" if seed else run


def seedless(row: Row) -> str:
    """The name of the row's run without its training seed at the end: "flow" of "flow-seed3"
    trained with seed 3."""
    if row.train_seed is None:
        return row.run
    return re.sub(rf"(?<=.)[-_.]?(seed[-_]?)?(?<!\d){row.train_seed}$", "", row.run)


def mean_and_error(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """The mean of independent figures, one for each seed, and its standard error; None of a single
    one."""
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None
    return float(np.mean(values)), error


class SeedMean(Row):
    """A point of a thing that was trained with several seeds: what was measured is the mean over
    them, and the rest is the first seed's.

    fid_std: over seeds, of one training; where a single seed has the point it is that row's.
    """

    of_seeds: tuple[Row, ...]
    """a row for each seed, by rising seed"""

    @property
    def members(self) -> tuple[Row, ...]:
        return self.of_seeds

    @property
    def repeats(self) -> int:
        return len(self.of_seeds) if len(self.of_seeds) > 1 else self.sets

    @property
    def bar(self) -> float | None:
        several = len(self.of_seeds) > 1
        return self.fid_std / self.repeats**0.5 if several else self.fid_std


# What is measured of samples, and what training took
MEANS = ("nfe", "fid_infinity", "kid", "precision", "recall", "train_evals", "train_seconds")


def pooled(group: Iterable[Row]) -> list[Row]:
    """Rows of one protocol, each point once for each run, with the seeds of each thing as one:
    where any of its points has several, all of them become a SeedMean, in the place of the first.

    Rows that do not say their training seed stay as they are, and so do those of a thing of which
    one seed has several rows for a point, or was trained longer than another: they are no seeds of
    one thing.
    """
    group = list(group)
    things: dict[tuple, list[Row]] = {}
    for row in group:
        if not row.is_floor and row.train_seed is not None:
            things.setdefault(_thing(row), []).append(row)
    means: dict[int, SeedMean | None] = {}
    for rows in things.values():
        means |= _means(rows)
    return [row for old in group if (row := means.get(id(old), old)) is not None]


def _thing(row: Row) -> tuple:
    setting = row.setting.model_copy(update={"steps": 1}).key()
    return (row.method, seedless(row), row.ema, setting, row.fid_error)


def _means(rows: list[Row]) -> dict[int, SeedMean | None]:
    """By the id of each row of a thing the mean that takes its place, None for those that are in
    the mean of another; {} where they are not seeds of one thing."""
    points: dict[int, list[Row]] = {}
    for row in rows:
        points.setdefault(row.steps, []).append(row)
    for at in points.values():
        if len({row.train_seed for row in at}) < len(at) or len({r.train_images for r in at}) > 1:
            return {}
    if all(len(at) == 1 for at in points.values()):
        return {}
    first = min(rows, key=lambda row: row.train_seed)
    means: dict[int, SeedMean | None] = {}
    for at in points.values():
        means |= dict.fromkeys(map(id, at))
        means[id(at[0])] = _mean(sorted(at, key=lambda row: row.train_seed), first)
    return means


def _mean(rows: list[Row], first: Row) -> SeedMean:
    """Of one point; `first`: of all points of the thing, the row of the lowest seed, whose names
    the curve goes by."""
    values = dict(rows[0])
    values |= {"run": seedless(first), "config_sha256": first.config_sha256, "seed": first.seed}
    if len(rows) > 1:
        mean, error = mean_and_error([row.fid for row in rows])
        words = f"standard error over {len(rows)} training seeds"
        values |= {"fid": mean, "fid_std": error * len(rows) ** 0.5, "fid_error": words}
        values |= {key: _mean_of([getattr(row, key) for row in rows]) for key in MEANS}
        times = [row.seconds_per_image for row in rows if row.device == rows[0].device]
        values["seconds_per_image"] = _mean_of(times)
        histograms = [row.class_histogram for row in rows]
        same = None not in histograms and len(set(map(len, histograms))) == 1
        values["class_histogram"] = tuple(map(sum, zip(*histograms))) if same else None
    return SeedMean.model_construct(**values, of_seeds=tuple(rows))


def _mean_of(values: list[float | None]) -> float | None:
    return None if None in values else fmean(values)


def count_of(points: Iterable[Row]) -> str:
    """Training seeds of each point of a series: "3", or "1 to 3"."""
    found = sorted({len(row.members) for row in points})
    return " to ".join(map(str, dict.fromkeys((found[0], found[-1]))))


def errors_label(group: Iterable[Row]) -> str:
    """What the error bars of these rows are, after "a" or "1"; empty where there are none."""
    rows = [row for row in group if row.fid_error]
    several = [row for row in rows if len(row.members) > 1]
    alone = sorted({row.fid_error for row in rows if len(row.members) == 1})
    words = [f"standard error over {count_of(several)} training seeds"] if several else []
    words += [f"standard deviation ({', '.join(alone)})"] if alone else []
    return ", of a single seed a ".join(words)
