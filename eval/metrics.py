"""Distances between two sets of images, from their features alone: [N, D] float tensors on the CPU.

FD is the Fréchet distance of Heusel et al. 2017, called FID when the features are Inception's. Its value, KID's, and
precision and recall come from torch-fidelity's own functions, so they are the numbers other users of that package report;
only the bootstrap has arithmetic of its own, because it needs the distance twenty times.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from eval.fidelity import torch_fidelity

KID_SUBSET, KID_SUBSETS = 1000, 50  # images a subset (fewer if there are fewer), subsets
NEIGHBOURS = 3  # of precision and recall


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
        raise UserError("features contain NaN or infinite values: the images or the extractor's weights are broken")
    given = torch_fidelity().metric_fid.fid_features_to_statistics(features.double())
    return Statistics(given["mu"], given["sigma"])


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """||mean_a - mean_b||^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) (Heusel et al. 2017, eq. 6)."""
    metric = torch_fidelity().metric_fid.fid_statistics_to_metric(
        {"mu": a.mean, "sigma": a.cov}, {"mu": b.mean, "sigma": b.cov}, verbose=False
    )
    return metric["frechet_inception_distance"]


def bootstrap_std(features: Tensor, reference: Statistics, resamples: int, seed: int = 0) -> float:
    """Standard deviation of the distance when the images of features [N, D] are drawn again with replacement.

    It costs no sampling. The level of a resampled distance is biased upwards (repeated images lower the rank), so only the
    spread is used. The trace of the root is computed as that of (R^T cov R)^(1/2) with reference covariance R R^T, which is
    symmetric: the same number as frechet_distance's, several times as fast.
    """
    if resamples < 2:
        raise UserError(f"bootstrap = {resamples}: an error bar needs at least 2 resamples (0 = no error bar)")
    x = features.double()
    mean_r, cov_r = torch.from_numpy(reference.mean), torch.from_numpy(reference.cov)
    values, vectors = torch.linalg.eigh(cov_r)
    root = vectors * values.clamp(min=0).sqrt()  # [D, D], root root^T = cov_r
    projected = x @ root
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(resamples):
        draw = torch.randint(len(x), (len(x),), generator=generator)
        count = torch.bincount(draw, minlength=len(x)).double()  # [N], how often each image was drawn
        mean, mean_p = count @ x / len(x), count @ projected / len(x)
        weight = count / (len(x) - 1)
        trace = weight @ (x - mean).square().sum(1)
        centred = projected - mean_p
        inner = (centred * weight[:, None]).T @ centred  # root^T cov root, [D, D]
        cross = torch.linalg.eigvalsh(inner).clamp(min=0).sqrt().sum()
        distances.append((mean - mean_r).square().sum() + trace + cov_r.trace() - 2 * cross)
    return float(torch.stack(distances).std())


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """KID: the unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, sec. 4), mean over subsets.

    Args:
        features, reference: [N, D] and [M, D]; subsets hold min(1000, N, M) images.
    """
    metric = torch_fidelity().metric_kid.kid_features_to_metric(
        features.double(),
        reference.double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET, len(features), len(reference)),
        kid_kernel="poly",
        verbose=False,
    )
    return metric["kernel_inception_distance_mean"]


def precision_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Improved precision and recall with 3 neighbours (Kynkäänniemi et al. 2019, eq. 1 and 2).

    Precision is the share of features [N, D] within the balls around reference [M, D], recall the share the other way
    round. The paper compares sets of equal size, so the larger one is cut to the size of the smaller.
    """
    size = min(len(features), len(reference))
    if size <= NEIGHBOURS:
        raise UserError(f"precision and recall need more than {NEIGHBOURS} images a set, got {size}")
    metric = torch_fidelity().metric_prc.prc_features_to_metric(
        features[:size].float(), reference[:size].float(), prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False
    )
    return metric["precision"], metric["recall"]
