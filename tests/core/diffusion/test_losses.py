"""Weights over noise levels and distances, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from core.diffusion.losses import distance, loss_weight, straight_error_scale, x0_error_scale
from core.diffusion.parameterisations import PREDICTIONS, from_denoised, to_denoised
from core.diffusion.paths import make_path

# On the rectified path SNR = ((1 - t) / t)^2: 16 at 0.2, 1 at 0.5 and 1/16 at 0.8. Of x0's error,
# v's is sigma^2 / (alpha^2 + sigma^2)^2 and u's sigma^2 there.
TIMES = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
V = [0.04 / 0.68**2, 0.25 / 0.5**2, 0.64 / 0.68**2]
U = [0.04, 0.25, 0.64]


@pytest.mark.parametrize(
    ("weighting", "kind", "gamma", "known"),
    [
        ("simple", "v", 5.0, [1, 1, 1]),
        ("truncated-snr", "x0", 5.0, [16, 1, 1]),
        ("truncated-snr", "v", 5.0, [16 * V[0], V[1], V[2]]),
        ("truncated-snr", "u", 5.0, [16 * U[0], U[1], U[2]]),
        ("truncated-snr", "eps", 5.0, [1, 1, 16]),
        ("min-snr", "x0", 5.0, [5, 1, 1 / 16]),
        ("min-snr", "x0", 0.5, [0.5, 0.5, 1 / 16]),
        ("min-snr", "v", 5.0, [5 * V[0], V[1], V[2] / 16]),
        ("min-snr", "u", 5.0, [5 * U[0], U[1], U[2] / 16]),
        ("min-snr", "eps", 5.0, [5 / 16, 1, 1]),
    ],
)
def test_weights_at_three_times(weighting, kind, gamma, known):
    weight = loss_weight(weighting, kind, TIMES, make_path("rectified"), gamma)
    torch.testing.assert_close(weight, torch.tensor(known, dtype=torch.float64))


@pytest.mark.parametrize("path", ["rectified", "vp-cosine", "vp-linear"])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_errors_of_all_predictions_are_carried_over(path, kind):
    """From the prediction of something a little wrong, read by the conversions themselves."""
    path, generator = make_path(path), torch.Generator().manual_seed(0)
    x0, eps, wrong = torch.randn(3, 3, 20, dtype=torch.float64, generator=generator)
    x_t = path.mix(x0, eps, TIMES)
    F = from_denoised(kind, x0, eps, TIMES, path)
    guess = to_denoised(kind, F + wrong, x_t, TIMES, path)
    own = wrong.square().mean(1)
    x0_error = (guess.x0 - x0).square().mean(1)
    straight = ((guess.eps - guess.x0) - (eps - x0)).square().mean(1)
    torch.testing.assert_close(x0_error_scale(kind, TIMES, path) * own, x0_error)
    torch.testing.assert_close(straight_error_scale(kind, TIMES, path) * own, straight)


def test_distances():
    """Of (3, 4, 0, 0), whose norm is 5, and of nothing. In 4 dimensions c is twice `huber`."""
    difference = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    squared = distance("squared", difference, huber=6.0)
    torch.testing.assert_close(squared, torch.tensor([25 / 4, 0.0]))
    huber = distance("pseudo-huber", difference, huber=6.0)
    torch.testing.assert_close(huber, torch.tensor([math.sqrt(25 + 144) - 12, 0.0]))
