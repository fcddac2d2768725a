"""The metrics of one row, from the features of its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from core.data import ImageData
from eval.features.extractors import ClassifierExtractor, Extractor
from eval.metrics.distances import (
    bootstrap_std,
    frechet_distance,
    kernel_distance,
    precision_recall,
    statistics,
)
from eval.metrics.extrapolate import fid_infinity
from eval.metrics.points import histogram_kl, projected, sliced_wasserstein, stretches
from eval.metrics.reference import Reference


class Metrics(NamedTuple):
    """The values of a row; None where they cannot be had."""

    fid: float
    fid_std: float | None
    fid_infinity: float | None
    kid: float | None
    precision: float | None
    recall: float | None


Distance = Callable[[Tensor], float]


def measure(
    features: Tensor,
    reference: Reference,
    sets: int,
    bootstrap: int,
    extrapolate: int = 0,
    strata: Tensor | None = None,
) -> Metrics:
    """The metrics of features [sets * n, D]: means over the sets, and the standard deviation that
    the config asks for.

    strata: classes [sets * n] whose numbers were fixed beforehand, for the bootstrap.

    fid_infinity is of all the images together; None with extrapolate = 0.
    """
    parts = features.chunk(sets)
    values = [frechet_distance(statistics(part), reference.statistics) for part in parts]
    kid = precision = recall = None  # where the reference has no features
    if reference.features is not None:
        kid = (
            sum(kernel_distance(part, reference.features, reference.found) for part in parts) / sets
        )
        shares = torch.tensor(
            [precision_recall(part, reference.features) for part in parts], dtype=torch.float64
        )
        precision, recall = shares.mean(0).tolist()
    if sets > 1:
        std = _spread(values)
    else:
        std = (
            bootstrap_std(features, reference.statistics, bootstrap, strata=strata)
            if bootstrap
            else None
        )
    infinity = fid_infinity(features, reference.statistics, extrapolate) if extrapolate else None
    return Metrics(sum(values) / sets, std, infinity, kid, precision, recall)


def measure_points(points: Tensor, distance: Distance, sets: int, bootstrap: int) -> Metrics:
    """The same of points [sets * n, 2], which have one distance and nothing else. The bootstrap
    draws points again with replacement, whatever their classes."""
    values = [distance(part) for part in points.chunk(sets)]
    std = _spread(values) if sets > 1 else None
    if sets == 1 and bootstrap:
        generator = torch.Generator().manual_seed(0)
        N = len(points)
        again = (points[torch.randint(N, (N,), generator=generator)] for _ in range(bootstrap))
        std = _spread([distance(drawn) for drawn in again])
    return Metrics(sum(values) / sets, std, None, None, None, None)


def point_distance(extractor: Extractor, reference: Reference, data: ImageData) -> Distance | None:
    """How far points are from the data, by the metric of the extractor; None for one of images."""
    if extractor.metric_name == "SW2":
        found, places = reference.found, projected(reference.features)

        def sliced(x: Tensor) -> float:
            if len(x) not in found:
                found[len(x)] = stretches(places, len(x))
            return sliced_wasserstein(projected(x), found[len(x)])

        return sliced
    if extractor.metric_name == "KL":
        return lambda x: histogram_kl(x, data.density)
    return None


def _spread(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std())


def class_histogram(
    features: Tensor, extractor: Extractor, data: ImageData
) -> tuple[int, ...] | None:
    """Images [num_classes] that the classifier counts to each class; None where it does not know
    the data's classes."""
    if (
        not isinstance(extractor, ClassifierExtractor)
        or extractor.classifier.spec.dataset != data.name
    ):
        return None
    seen = extractor.logits_of(features).argmax(1)
    return tuple(torch.bincount(seen, minlength=extractor.num_classes).tolist())
