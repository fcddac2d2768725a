"""FID without its bias from the number of images: Chong and Forsyth 2020, "Effectively Unbiased FID
and Inception Score and where to find them" (arXiv 1911.07023, sec. 4).

The distance measured with N images exceeds its limit by about c / N, where c depends on the model
(sec. 3), so that two models may change places when N grows. The distance is measured at several N
and a line in 1/N is fitted; its intercept is FID infinity. As in the authors' code, sizes are
evenly spaced from a tenth of the images to all of them, each drawn from them without replacement.

Deviations: plain random images where the paper's second improvement is Sobol noise, since our noise
is addressed by sample; the smallest size is at least twice the number of features, below which the
bias is no longer a line in 1/N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.errors import UserError
from eval.metrics.distances import Statistics, resampled_distances


def sizes_for(count: int, width: int, points: int) -> list[int]:
    """The numbers of images at which the distance is measured, of `count` images with `width`
    features.

    Raises:
        UserError: fewer than 3 points, or fewer than 4 images a feature.
    """
    if points < 3:
        raise UserError(f"extrapolate = {points}: a line needs at least 3 points (0 = off)")
    if count < 4 * width:
        raise UserError(
            f"extrapolate: {width} features need at least {4 * width} images (n * sets), there are {count}"
        )
    smallest = max(count // 10, 2 * width)
    return [round(smallest + (count - smallest) * i / (points - 1)) for i in range(points)]


def fid_infinity(features: Tensor, reference: Statistics, points: int, seed: int = 0) -> float:
    """The intercept of the line through (1/N, distance at N images), for features [N, D] against
    the reference.

    It has a larger variance than the distance itself, and the reference's own number of images is
    not extrapolated. The value may be negative where the true distance is near zero.

    Raises:
        UserError: too few points or images.
    """
    sizes = sizes_for(len(features), features.shape[1], points)
    generator = torch.Generator().manual_seed(seed)
    counts = []
    for size in sizes:
        count = torch.zeros(len(features), dtype=torch.float64)
        count[torch.randperm(len(features), generator=generator)[:size]] = 1
        counts.append(count)
    distances = resampled_distances(features, reference, counts)
    inverse = 1 / torch.tensor(sizes, dtype=torch.float64)
    line = torch.linalg.lstsq(
        torch.stack([torch.ones_like(inverse), inverse * sizes[0]], 1), distances[:, None]
    ).solution
    return float(line[0])
