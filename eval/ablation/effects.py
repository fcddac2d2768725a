"""Effects: what a change of one axis does, and what it does differently where another axis is
changed too, with errors from differences that are paired by training seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from eval.curves.seeds import mean_and_error

LEVEL = 0.05  # p below which an effect is more than its error, and 1 - coverage of intervals


@dataclass(frozen=True)
class Estimate:
    """The mean of differences, one for each seed, with its standard error, its 95 % interval and
    the p of a paired t-test; all but the mean are None with one seed."""

    mean: float
    error: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Effect:
    """`first` minus `second` along `axis`, the mean over the other axes; positive where `first` is
    larger.

    where: of an interaction the other axis with two of its levels: then the difference at the first
    of them minus the difference at the second.
    seeds: those that all of its cells have. whole: whether no cell or seed was lost.
    adjusted: p corrected for the number of comparisons.
    """

    point: str
    axis: str
    first: str
    second: str
    where: tuple[str, str, str] | None
    seeds: tuple[int, ...]
    whole: bool
    estimate: Estimate
    adjusted: float | None = None

    @property
    def significant(self) -> bool:
        return self.adjusted is not None and self.adjusted < LEVEL


@dataclass(frozen=True)
class Results:
    """One measured figure of every cell with every seed.

    axes: names. levels: of each cell, as many as there are axes. seeds: of the columns.
    values: [cells, seeds], NaN where a trial has none.
    """

    point: str
    axes: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    values: np.ndarray


def estimate(differences: np.ndarray) -> Estimate:
    """Of [S] independent differences, S >= 1."""
    count, (mean, error) = len(differences), mean_and_error(differences)
    if error is None:
        return Estimate(mean, None, None, None, None)
    half = float(stats.t.isf(LEVEL / 2, count - 1)) * error
    if error == 0:  # no difference at all, or the very same for every seed
        p = float(mean == 0)
    else:
        p = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return Estimate(mean, error, mean - half, mean + half, p)


def main_effects(results: Results) -> list[Effect]:
    """Every pair of levels of every axis, over the combinations of the other axes that have both."""
    found = []
    for place, axis in enumerate(results.axes):
        for pair in combinations(_levels(results, place), 2):
            groups, lost = _groups(results, (place,), (pair,))
            effect = _effect(results, groups, lost, np.array([1.0, -1.0]), axis, pair, None)
            found += [effect] if effect else []
    return found


def interactions(results: Results) -> list[Effect]:
    """Every pair of levels of one axis at every pair of levels of another."""
    found = []
    for places in combinations(range(len(results.axes)), 2):
        one, two = (list(combinations(_levels(results, place), 2)) for place in places)
        for pair in one:
            for other in two:
                groups, lost = _groups(results, places, (pair, other))
                signs = np.array([1.0, -1.0, -1.0, 1.0])
                where = (results.axes[places[1]], *other)
                axis = results.axes[places[0]]
                effect = _effect(results, groups, lost, signs, axis, pair, where)
                found += [effect] if effect else []
    return found


def _levels(results: Results, place: int) -> list[str]:
    return list(dict.fromkeys(levels[place] for levels in results.levels))


def _groups(
    results: Results, places: tuple[int, ...], pairs: tuple[tuple[str, str], ...]
) -> tuple[list[list[int]], bool]:
    """Groups of cells that differ in nothing but `places`, where they have all combinations of the
    levels of `pairs` and every cell has a value; and whether any group was lost to a cell
    without."""
    rows: dict[tuple[str, ...], int] = {levels: i for i, levels in enumerate(results.levels)}
    groups, lost = [], False
    firsts = tuple(first for first, _ in pairs)
    for levels in results.levels:
        if tuple(levels[place] for place in places) != firsts:
            continue
        group = []
        for chosen in _corners(pairs):
            other = list(levels)
            for place, level in zip(places, chosen, strict=True):
                other[place] = level
            group.append(rows.get(tuple(other)))
        if None in group:
            continue  # left out by design
        if np.isnan(results.values[group]).all(1).any():
            lost = True
            continue
        groups.append(group)
    return groups, lost


def _corners(pairs: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, ...]]:
    """(a1,), (a2,); or (a1, b1), (a1, b2), (a2, b1), (a2, b2)."""
    if not pairs:
        yield ()
        return
    for level in pairs[0]:
        for rest in _corners(pairs[1:]):
            yield (level, *rest)


def _effect(
    results: Results,
    groups: list[list[int]],
    lost: bool,
    signs: np.ndarray,
    axis: str,
    pair: tuple[str, str],
    where: tuple[str, str, str] | None,
) -> Effect | None:
    """None where no seed has all of the cells."""
    if not groups:
        return None
    values = results.values[np.array(groups)]  # [groups, corners, seeds]
    differences = np.einsum("gcs,c->s", values, signs) / len(groups)
    there = ~np.isnan(differences)
    if not there.any():
        return None
    seeds = tuple(seed for seed, ok in zip(results.seeds, there, strict=True) if ok)
    whole = not lost and len(seeds) == len(results.seeds)
    found = estimate(differences[there])
    return Effect(results.point, axis, *pair, where, seeds, whole, found)


def corrected(effects: list[Effect]) -> list[Effect]:
    """The effects with p corrected for their number by Holm's method: the chance that even one of
    them is called different where none is stays at LEVEL."""
    tested = [i for i, effect in enumerate(effects) if effect.estimate.p is not None]
    adjusted = holm([effects[i].estimate.p for i in tested])
    found = list(effects)
    for i, p in zip(tested, adjusted, strict=True):
        found[i] = replace(effects[i], adjusted=p)
    return found


def holm(ps: list[float]) -> list[float]:
    """p values corrected by Holm's step-down method, in their order."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class Components:
    """Where a figure's variance comes from, as standard deviations: of the training seed, and of
    the samples behind one figure. raw: the variance of the seed as it was estimated, which may be
    negative where it is small."""

    point: str
    seed: float
    samples: float
    raw: float

    @property
    def share(self) -> float:
        """Of the training seed, in a figure's variance."""
        whole = self.seed**2 + self.samples**2
        return self.seed**2 / whole if whole else 0.0


def components(results: Results, errors: np.ndarray) -> Components | None:
    """A random-effects estimate, with sample sets within seeds: the variance of a cell's figures
    over its seeds is that of the seed and that of the samples together.

    Args:
        errors: [cells, seeds], the standard error of each figure from its sample sets or bootstrap.

    Returns None where no cell has two seeds, or figures have no errors.
    """
    spread, within, weights = 0.0, 0.0, 0
    for values, own in zip(results.values, errors, strict=True):
        there = ~np.isnan(values) & ~np.isnan(own)
        if (count := int(there.sum())) >= 2:
            spread += float(values[there].var(ddof=1)) * (count - 1)
            within += float(np.square(own[there]).mean()) * (count - 1)
            weights += count - 1
    if not weights:
        return None
    raw = (spread - within) / weights
    return Components(results.point, max(0.0, raw) ** 0.5, (within / weights) ** 0.5, raw)
