"""What the bootstrapped error bar is an error bar of, measured on Gaussians: the distance at this n
over fresh samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.metrics.distances import Statistics, bootstrap_std, frechet_distance, statistics

D, N = 8, 300
SHIFT = 0.5
REFERENCE = Statistics(np.full(D, SHIFT), np.eye(D))


@pytest.fixture(scope="module")
def repeats() -> list[tuple[float, float]]:
    """(distance, bootstrapped standard deviation) of 150 fresh sets of 300."""
    rng = np.random.default_rng(0)
    sets = [torch.from_numpy(rng.normal(size=(N, D))) for _ in range(150)]
    return [
        (frechet_distance(statistics(x), REFERENCE), bootstrap_std(x, REFERENCE, 40, i))
        for i, x in enumerate(sets)
    ]


def test_two_deviations_cover_the_mean_at_this_n(repeats):
    """Value ± 2 std covers the distance's expectation at this n in about 95 % of fresh sets (89 to
    99 % with 150 of them)."""
    values, stds = np.array(repeats).T
    covered = np.mean(np.abs(values - values.mean()) <= 2 * stds)
    assert 0.89 <= covered <= 0.99
    half = np.mean(np.abs(values - values.mean()) <= stds)
    assert (
        0.55 <= half <= 0.80
    )  # 68 % within one; a bar half or twice as long would give 38 or 95 %


def test_it_is_no_error_bar_of_the_true_distance():
    """With many features and few images the bias exceeds the bar: the true distance is hardly ever
    within it."""
    width = 32
    rng = np.random.default_rng(1)
    reference = Statistics(
        np.zeros(width), np.eye(width)
    )  # the same distribution: the true distance is 0
    sets = [torch.from_numpy(rng.normal(size=(N, width))) for _ in range(20)]
    results = [
        (frechet_distance(statistics(x), reference), bootstrap_std(x, reference, 20)) for x in sets
    ]
    assert sum(value - 2 * std <= 0 for value, std in results) == 0


def classes(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """N images of two classes far apart, as many of each as of the other: features [N, D] and
    classes [N]."""
    label = np.arange(N) % 2
    return torch.from_numpy(rng.normal(size=(N, D)) + 6.0 * label[:, None]), torch.from_numpy(label)


def test_strata_keep_the_class_counts_that_were_fixed():
    """Fresh sets with fixed class counts spread as the stratified bar says; a bar over all classes
    is several times as long."""
    # half a unit away, so that the distance is linear in the sample's moments; at its minimum no
    # bootstrap is an error bar
    reference = Statistics(np.full(D, 3.0 + SHIFT), np.eye(D) + 9.0)
    rng = np.random.default_rng(2)
    sets = [classes(rng) for _ in range(60)]
    spread = np.std([frechet_distance(statistics(x), reference) for x, _ in sets], ddof=1)
    stratified = np.mean(
        [bootstrap_std(x, reference, 40, i, label) for i, (x, label) in enumerate(sets)]
    )
    plain = np.mean([bootstrap_std(x, reference, 40, i) for i, (x, _) in enumerate(sets)])
    assert 0.75 <= stratified / spread <= 1.35
    assert plain / spread > 2


@pytest.mark.parametrize("each, low, high", [(2, 0.8, 1.25), (1, 1.5, np.inf)])
def test_strata_of_few_images(each, low, high):
    """With 2 images a class the bar is that of fresh sets; m draws of m would make it 0.71 of it,
    and one image a class zero. Images alone in their class are drawn over all classes: their bar is
    too long, as a bar over classes is, but never zero."""
    size = 100
    centres = torch.from_numpy(np.random.default_rng(3).normal(size=(size // each, D))) * 3
    label = torch.arange(size) % (size // each)
    rng = np.random.default_rng(4)
    sets = [centres[label] + torch.from_numpy(rng.normal(size=(size, D))) for _ in range(80)]
    reference = Statistics(
        np.full(D, 2.0), 10 * np.eye(D)
    )  # away from all, so that the distance is linear in the moments
    spread = np.std([frechet_distance(statistics(x), reference) for x in sets], ddof=1)
    bars = np.mean([bootstrap_std(x, reference, 40, i, label) for i, x in enumerate(sets)])
    assert low <= bars / spread <= high
