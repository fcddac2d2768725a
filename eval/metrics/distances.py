"""Distances between two sets of images, from their features alone: [N, D] float tensors on the CPU.

FD is the Fréchet distance of Heusel et al. 2017, called FID when the features are Inception's. Its
value, and precision and recall, come from torch-fidelity's own functions, so they are the numbers
other users of that package report. The bootstrap and KID have arithmetic of their own, because they
repeat theirs many times; tests hold both to the package's numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from eval.features.fidelity import torch_fidelity

KID_SUBSET, KID_SUBSETS = 1000, 50  # images a subset (fewer if there are fewer), subsets
KID_SEED = 2020  # torch-fidelity's default
NEIGHBOURS = 3  # of precision and recall
SMALLEST = NEIGHBOURS + 1  # images a set, for all the metrics


class Statistics(NamedTuple):
    """mean [D] and covariance [D, D] of a set of features, float64."""

    mean: np.ndarray
    cov: np.ndarray


def statistics(features: Tensor) -> Statistics:
    """Mean and unbiased covariance of features [N, D].

    Raises:
        UserError: fewer than two images, or features that are not finite.
    """
    if len(features) < 2:
        raise UserError(f"a Fréchet distance needs at least 2 images a set, got {len(features)}")
    if not torch.isfinite(features).all():
        raise UserError(
            "features contain NaN or infinite values: the images or the extractor's weights are broken"
        )
    given = torch_fidelity().metric_fid.fid_features_to_statistics(features.double())
    return Statistics(given["mu"], given["sigma"])


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """||mean_a - mean_b||^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) (Heusel et al. 2017, eq.
    6)."""
    metric = torch_fidelity().metric_fid.fid_statistics_to_metric(
        {"mu": a.mean, "sigma": a.cov}, {"mu": b.mean, "sigma": b.cov}, verbose=False
    )
    return metric["frechet_inception_distance"]


def resampled_distances(
    features: Tensor, reference: Statistics, counts: Iterable[Tensor]
) -> Tensor:
    """The distances [K] of K resamples of features [N, D], float64.

    Args:
        counts: K tensors [N], float64, of how often each image is in the resample.

    The trace of the root is computed as that of (R^T cov R)^(1/2) with reference covariance R R^T,
    which is symmetric: the same number as frechet_distance's, several times as fast.
    """
    x = features.double()
    mean_r, cov_r = torch.from_numpy(reference.mean), torch.from_numpy(reference.cov)
    values, vectors = torch.linalg.eigh(cov_r)
    root = vectors * values.clamp(min=0).sqrt()  # [D, D], root root^T = cov_r
    projected = x @ root
    distances = []
    for count in counts:
        size = count.sum()
        mean, mean_p = count @ x / size, count @ projected / size
        weight = count / (size - 1)
        trace = weight @ (x - mean).square().sum(1)
        centred = projected - mean_p
        inner = (centred * weight[:, None]).T @ centred  # root^T cov root, [D, D]
        cross = torch.linalg.eigvalsh(inner).clamp(min=0).sqrt().sum()
        distances.append((mean - mean_r).square().sum() + trace + cov_r.trace() - 2 * cross)
    return torch.stack(distances)


def bootstrap_std(
    features: Tensor,
    reference: Statistics,
    resamples: int,
    seed: int = 0,
    strata: Tensor | None = None,
) -> float:
    """Standard deviation of the distance when the images of features [N, D] are drawn again with
    replacement.

    strata: int64 [N], a class for each image where the number of images of each class was fixed
    beforehand. Images are then drawn again within their class; drawing over all classes would add a
    spread of class counts that the measured set does not have. Of a class of m images m - 1 are
    drawn, each with the weight m / (m - 1): m draws would give the variance of a class mean (m - 1)
    / m times too small (Rao and Wu 1988, sec. 3), which is half with 2 images a class. Images alone
    in their class are drawn together as one class (collapsed strata, Cochran 1977, sec. 5A.12), so
    that the bar is rather too long than zero.

    It costs no sampling. The level of a resampled distance is biased upwards (repeated images lower
    the rank), so only the spread is used: it is the error bar of the distance at this n, that is of
    what other seeds would give, and not of the distance at infinite n (see
    eval/metrics/extrapolate.py) nor of what another training would give.
    """
    if resamples < 2:
        raise UserError(
            f"bootstrap = {resamples}: an error bar needs at least 2 resamples (0 = no error bar)"
        )
    generator = torch.Generator().manual_seed(seed)
    members = (
        [(strata == c).nonzero()[:, 0] for c in strata.unique()]
        if strata is not None
        else [torch.arange(len(features))]
    )
    alone = [m for m in members if len(m) == 1]
    members = [m for m in members if len(m) > 1] + ([torch.cat(alone)] if alone else [])

    def draw() -> Tensor:
        counts = torch.zeros(len(features), dtype=torch.float64)
        for m in members:
            size = len(m) if strata is None else max(1, len(m) - 1)
            drawn = m[torch.randint(len(m), (size,), generator=generator)]
            counts += torch.bincount(drawn, minlength=len(features)) * (len(m) / size)
        return counts

    return float(resampled_distances(features, reference, (draw() for _ in range(resamples))).std())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x_i.y_j / D + 1)^3, [N, M]."""
    k = torch.addmm(x.new_ones(()), x, y.T, alpha=1 / x.shape[1])
    return k * k * k


def _sums_within(v: Tensor, subsets: list[Tensor]) -> list[float]:
    """For each subset (indices) of v the kernel's sum over all i != j."""

    def one(x: Tensor) -> float:
        k = _kernel(x, x)
        return float(k.sum() - k.diagonal().sum())

    if len(subsets[0]) == len(v):  # every subset is the whole
        return [one(v)] * len(subsets)
    return [one(v[s]) for s in subsets]


def _sums_between(a: Tensor, b: Tensor, subsets: list[tuple[Tensor, Tensor]]) -> list[float]:
    """For each pair of subsets of a and b the kernel's sum over all i and j; where one side is
    whole, from its sum over that."""
    size = len(subsets[0][0])
    if size == len(a):
        sums = _kernel(a, b).sum(0)
        return [float(sums[y].sum()) for _, y in subsets]
    if size == len(b):
        sums = _kernel(a, b).sum(1)
        return [float(sums[x].sum()) for x, _ in subsets]
    return [float(_kernel(a[x], b[y]).sum()) for x, y in subsets]


def kernel_distance(features: Tensor, reference: Tensor, sums: dict | None = None) -> float:
    """KID: the unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, sec.
    4), mean over subsets.

    The subsets are those that torch-fidelity draws (its seed), and the number is its number,
    several times as fast.

    Args:
        features, reference: [N, D] and [M, D]; subsets hold min(1000, N, M) images.
        sums: a dictionary that belongs to `reference`, in which what depends on it alone is kept
            for the next call.
    """
    a, b = features.double(), reference.double()
    size = min(KID_SUBSET, len(a), len(b))
    rng = np.random.RandomState(KID_SEED)
    subsets = []
    for _ in range(KID_SUBSETS):
        x, y = (torch.from_numpy(rng.choice(len(v), size, replace=False)) for v in (a, b))
        subsets.append((x, y))
    sums = {} if sums is None else sums
    if (
        len(a) not in sums
    ):  # which images of the reference are drawn depends on how many the other set has
        sums[len(a)] = _sums_within(b, [y for _, y in subsets])
    within_a, within_b = _sums_within(a, [x for x, _ in subsets]), sums[len(a)]
    between = _sums_between(a, b, subsets)
    values = [
        (xx + yy) / (size * (size - 1)) - 2 * xy / size**2
        for xx, yy, xy in zip(within_a, within_b, between, strict=True)
    ]
    return float(np.mean(values))


def precision_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Improved precision and recall with 3 neighbours (Kynkäänniemi et al. 2019, eq. 1 and 2).

    Precision is the share of features [N, D] within the balls around reference [M, D], recall the
    share the other way round. The paper compares sets of equal size, so the larger one is cut to
    the size of the smaller.
    """
    size = min(len(features), len(reference))
    if size <= NEIGHBOURS:
        raise UserError(
            f"precision and recall need more than {NEIGHBOURS} images a set, got {size}"
        )
    metric = torch_fidelity().metric_prc.prc_features_to_metric(
        features[:size].float(),
        reference[:size].float(),
        prc_neighborhood=NEIGHBOURS,
        save_cpu_ram=True,
        verbose=False,
    )
    return metric["precision"], metric["recall"]
