"""Verdicts: what the effects of a study say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby

from eval.ablation.effects import Effect


def p_words(p: float) -> str:
    """ "p = 0.004", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def signed(value: float, error: float | None) -> str:
    """ "+12.1 ± 3.0": in two digits of the error."""
    if error is None:
        return f"{value:+.3g}"
    digits = min(6, max(0, 1 - math.floor(math.log10(error)))) if error else 3
    return f"{value:+.{digits}f} ± {error:.{digits}f}"


def listed(words: Iterable[str]) -> str:
    """ "1 step", "1 step and 4 steps", "1 step, 2 steps and 4 steps"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def verdicts(effects: list[Effect]) -> list[str]:
    """A sentence for each pair of levels, and each pair of pairs of an interaction, over all
    points."""

    def subject(effect: Effect) -> tuple:
        return (effect.axis, effect.first, effect.second, effect.where or ())

    together = sorted(effects, key=lambda e: [subject(e) == subject(o) for o in effects].index(1))
    return [_sentence(list(group)) for _, group in groupby(together, key=subject)]


def _sentence(effects: list[Effect]) -> str:
    one = effects[0]
    if all(effect.adjusted is None for effect in effects):
        return f"{_subject(one)}: {_unproved(effects)}"
    clauses = _clauses([effect for effect in effects if effect.significant])
    if rest := [effect.point for effect in effects if not effect.significant]:
        what = "no interaction" if one.where else "no difference"
        between = "" if clauses or one.where else f" between {one.first} and {one.second}"
        clauses.append(f"{what}{between} at {listed(rest)} beyond the error")
    return f"{_subject(one)}: {'; '.join(clauses)}{_seeds(effects)}"


def _subject(effect: Effect) -> str:
    if effect.where:
        other, at, instead = effect.where
        return f"{effect.axis} by {other}, {effect.first} − {effect.second}, {at} and {instead}"
    return effect.axis


def _clauses(effects: list[Effect]) -> list[str]:
    """One for each; what the one before says too is left out."""
    found, last = [], None
    for effect in effects:
        e = effect.estimate
        if effect.where:
            _, at, instead = effect.where
            side = "higher" if e.mean > 0 else "lower"
            words = f"the difference is {side} with {at} than with {instead} "
        else:
            side = "worse" if e.mean > 0 else "better"
            words = f"{effect.first} is {side} than {effect.second} "
        how = f"{signed(e.mean, e.error)}, {p_words(effect.adjusted)}"
        found.append(f"{words if words != last else ''}at {effect.point}: {how}")
        last = words
    return found


def _unproved(effects: list[Effect]) -> str:
    seen = ", ".join(f"{signed(e.estimate.mean, None)} at {e.point}" for e in effects)
    return f"one seed allows no claim ({effects[0].first} minus {effects[0].second}: {seen})"


def _seeds(effects: list[Effect]) -> str:
    """Where cells or seeds were lost, what is left."""
    if all(effect.whole for effect in effects):
        return ""
    fewest = min(effects, key=lambda effect: len(effect.seeds))
    return f" (of what was finished: training seeds {listed(map(str, fewest.seeds))})"
