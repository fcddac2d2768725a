"""From densities of what a network sees to bits per dimension of what is stored."""

from __future__ import annotations

import math

from torch import Tensor

from core.codec import Codec
from core.noise import Noise


def dequantised(codec: Codec, stored: Tensor, rng: Noise) -> Tensor:
    """Stored samples [B, ...] as the network sees them, in float64, with noise that is uniform over
    the cell of each value, of the codec's spacing, around it (Uria et al. 2013; Theis et al. 2016);
    continuous samples as they are."""
    x = codec.encode(stored.to(rng.indices.device)).double()
    if codec.spacing is None:
        return x
    u = rng.uniform("dequantise", count=x[0].numel()).view_as(x)
    return x + codec.spacing * (u - 0.5)


def bits_per_dimension(log_density: Tensor, dimensions: int, codec: Codec) -> Tensor:
    """[B]: of dequantised samples, log p in nats of what the network sees. Its mean over dequantised
    images is an upper bound on that of the stored ones, by Jensen's inequality (Theis et al. 2016,
    eq. 4). Of continuous samples, such as points or latents, it is minus the log density per coordinate of
    what the network sees, and may be negative."""
    cell = math.log(codec.spacing) if codec.spacing is not None else 0.0
    return -(log_density / dimensions + cell) / math.log(2)
