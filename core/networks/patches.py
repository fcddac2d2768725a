"""A critic that gives a value to each patch of an image (Isola et al. 2017, arXiv 1611.07004,
sec. 3.2.2)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from core.config import Strict
from core.networks.unet import group_norm

SLOPE = 0.2  # of the leaky ReLU


class PatchConfig(Strict):
    """The size of a critic on patches."""

    widths: tuple[Annotated[int, Field(ge=4, le=8192)], ...] = Field(
        default=(32, 64), min_length=1, max_length=10
    )
    """channels of its convolutions, each of which halves the side"""


class PatchCritic(nn.Module):
    """image [B, C, S, S] -> values [B, K], one for each patch.

    4x4 convolutions of stride 2, then one to the values. Group normalisation takes the place of the
    paper's batch normalisation, with which a sample's value would depend on the others.
    """

    def __init__(self, config: PatchConfig, channels: int):
        super().__init__()
        sizes = (channels, *config.widths)
        pairs = list(pairwise(sizes))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(group_norm(b) for _, b in pairs[1:])
        self.last = nn.Conv2d(sizes[-1], 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        h = F.leaky_relu(self.convs[0](image), SLOPE)
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), SLOPE)
        return self.last(h).flatten(1)
