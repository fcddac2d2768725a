"""Effects of synthetic cells, whose truth is known: intervals cover it, false alarms are as rare as
they are said to be, and other libraries' formulas give the same numbers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from eval.ablation.effects import (
    Results,
    components,
    corrected,
    estimate,
    holm,
    interactions,
    main_effects,
)

STUDIES = 2000


def cells(*counts: int) -> tuple[tuple[str, ...], ...]:
    """Levels of a full grid: a0, a1, ... along the first axis, b0, b1, ... along the second."""
    return tuple(product(*([f"{'abc'[i]}{k}" for k in range(n)] for i, n in enumerate(counts))))


def results(values: np.ndarray, *counts: int) -> Results:
    axes = tuple("ABC"[: len(counts)])
    return Results("1 step", axes, cells(*counts), tuple(range(values.shape[1])), values)


def synthetic(rng, truth: np.ndarray, seeds: int, shared: float = 2.0) -> np.ndarray:
    """[cells, seeds]: the truth of each cell, what a seed does to all of them, and noise."""
    noise = rng.normal(size=(len(truth), seeds))
    return truth[:, None] + shared * rng.normal(size=seeds) + noise


def binomial(rate: float, trials: int = STUDIES) -> float:
    """3 standard deviations of the share of hits."""
    return 3 * (rate * (1 - rate) / trials) ** 0.5


TRUTH = np.array([10.0, 11.0, 12.5, 9.0, 9.0, 9.0])  # 3 levels of A times 2 of B


def test_intervals_cover_the_truth_and_errors_are_right():
    """Main effects and interactions of a 3 x 2 grid with 4 seeds: 95 % of the intervals hold the
    true difference."""
    rng, hits, found_mean = np.random.default_rng(0), {}, {}
    mean = TRUTH.reshape(3, 2).mean(1)
    expected = {("a0", "a1"): mean[0] - mean[1], ("a0", "a2"): mean[0] - mean[2]}
    both = (10.0 - 12.5) - (11.0 - 9.0)  # (a0 - a1) at b0, minus the same at b1
    for _ in range(STUDIES):
        one = results(synthetic(rng, TRUTH, seeds=4), 3, 2)
        for e in main_effects(one):
            if (truth := expected.get((e.first, e.second))) is not None:
                hits.setdefault((e.first, e.second), []).append(
                    e.estimate.low <= truth <= e.estimate.high
                )
                found_mean.setdefault((e.first, e.second), []).append(e.estimate.mean)
        (e,) = (e for e in interactions(one) if (e.first, e.second) == ("a0", "a1"))
        hits.setdefault("interaction", []).append(e.estimate.low <= both <= e.estimate.high)
    assert len(hits) == 3
    for rates in hits.values():
        assert np.mean(rates) == pytest.approx(0.95, abs=binomial(0.95))
    for pair, means in found_mean.items():
        assert np.mean(means) == pytest.approx(expected[pair], abs=0.06)
        assert np.std(means) == pytest.approx((2 / 2 / 4) ** 0.5, rel=0.05)  # noise alone


def test_false_alarms_are_as_rare_as_they_should_be():
    """Where nothing makes a difference: each p is below 0.05 in 5 % of the studies, and after the
    correction no more than 5 % of the studies claim anything."""
    rng, raw, family = np.random.default_rng(1), [], []
    for _ in range(STUDIES):
        one = results(synthetic(rng, np.full(6, 7.0), seeds=4), 3, 2)
        found = corrected(main_effects(one))
        raw.append(found[0].estimate.p < 0.05)
        family.append(any(e.significant for e in found))
        assert len(found) == 4  # three pairs of A, one of B
    assert np.mean(raw) == pytest.approx(0.05, abs=binomial(0.05))
    assert 0.01 < np.mean(family) <= 0.05 + binomial(0.05)


def test_a_planted_interaction_is_found_and_a_main_effect_is_not_taken_for_one():
    rng = np.random.default_rng(2)
    planted = synthetic(rng, np.array([5.0, 5.0, 5.0, 12.0]), seeds=6)
    (effect,) = corrected(interactions(results(planted, 2, 2)))
    assert effect.significant and effect.where == ("B", "b0", "b1")
    assert effect.estimate.mean == pytest.approx(7.0, abs=2.5)  # (5 - 5) - (5 - 12)
    additive = synthetic(rng, np.array([5.0, 9.0, 12.0, 16.0]), seeds=6)
    (effect,) = corrected(interactions(results(additive, 2, 2)))
    assert not effect.significant
    assert all(e.significant for e in corrected(main_effects(results(additive, 2, 2))))


def test_pairing_by_seed_is_tighter_where_seeds_share_noise():
    """Against Welch's test on the same numbers; where they share none it is not."""
    rng, ratio = np.random.default_rng(3), {}
    for shared in (0.0, 5.0):
        values = [synthetic(rng, np.array([3.0, 4.0]), 8, shared) for _ in range(300)]
        paired = [main_effects(results(v, 2))[0].estimate.error for v in values]
        unpaired = [(v.var(1, ddof=1).sum() / 8) ** 0.5 for v in values]
        ratio[shared] = np.mean(paired) / np.mean(unpaired)
    assert ratio[5.0] < 0.3 and ratio[0.0] == pytest.approx(1.0, abs=0.03)


def test_a_paired_t_test_as_scipy_makes_it():
    a, b = np.random.default_rng(4).normal(size=(2, 5))
    found = estimate(a - b)
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.error == pytest.approx(stats.sem(a - b))


def test_holm_by_hand():
    """The example of Holm's method: sorted p times 4, 3, 2 and 1, never falling, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_one_seed_has_a_difference_and_no_p():
    (effect,) = corrected(main_effects(results(np.array([[3.0], [1.0]]), 2)))
    assert effect.estimate.mean == 2.0 and effect.estimate.p is None and not effect.significant
    same = corrected(main_effects(results(np.full((2, 3), 4.0), 2)))[0]
    assert same.estimate.p == 1.0 and not same.significant  # what makes no difference at all


def test_missing_seeds_leave_the_common_ones():
    nan = np.nan
    values = np.array([[1.0, 2.0, 3.0], [5.0, nan, 9.0]])
    (effect,) = main_effects(results(values, 2))
    assert effect.seeds == (0, 2) and not effect.whole
    assert effect.estimate.mean == pytest.approx(-5.0)  # (1 - 5, 3 - 9)
    apart = np.array([[1.0, nan], [nan, 9.0]])
    assert main_effects(results(apart, 2)) == []  # no seed has both


def test_a_cell_without_any_figure_takes_its_group_along():
    """Of a 2 x 2 grid: the effect of A is that at b0, and there is no interaction."""
    values = np.array([[1.0, 2.0], [5.0, 6.0], [4.0, 4.0], [np.nan, np.nan]])
    a, b = main_effects(results(values, 2, 2))
    assert a.estimate.mean == pytest.approx(-2.5) and not a.whole
    assert b.estimate.mean == pytest.approx(-4.0) and not b.whole
    assert interactions(results(values, 2, 2)) == []


def test_cells_left_out_by_design_are_no_loss():
    levels = (("a0", "b0"), ("a0", "b1"), ("a1", "b0"))
    one = Results("1 step", ("A", "B"), levels, (0, 1), np.array([[1.0, 2], [5.0, 6], [4.0, 4]]))
    a, _ = main_effects(one)
    assert a.whole and a.estimate.mean == pytest.approx(-2.5)


def test_components_of_variance():
    """Seeds of standard deviation 2, three sets of 1.2 within each: both are found, on average over
    studies of 6 cells and 5 seeds."""
    rng, found = np.random.default_rng(5), []
    for _ in range(400):
        seeds = rng.normal(0, 2.0, (6, 5))
        sets = seeds[..., None] + rng.normal(0, 1.2, (6, 5, 3))
        errors = sets.std(-1, ddof=1) / 3**0.5
        found.append(components(results(sets.mean(-1), 6), errors))
    assert np.mean([c.raw for c in found]) == pytest.approx(4.0, rel=0.05)
    assert np.mean([c.samples**2 for c in found]) == pytest.approx(1.2**2 / 3, rel=0.05)
    assert np.mean([c.share for c in found]) == pytest.approx(4 / (4 + 0.48), abs=0.03)
    alone = results(np.array([[1.0], [2.0]]), 2)
    assert components(alone, np.full((2, 1), 0.1)) is None
    nothing = components(results(np.ones((2, 3)), 2), np.full((2, 3), 0.5))
    assert (nothing.seed, nothing.share) == (0.0, 0.0) and nothing.raw == pytest.approx(-0.25)
