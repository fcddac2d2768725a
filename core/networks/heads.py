"""Heads of a critic on the features that another network sees."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from core.networks.unet import group_norm


class Heads(nn.Module):
    """features [B, C, h, w], label [B] or None -> values [B, h * w], one for each place, as in
    SiDA's and StyleGAN-T's maps of logits. The label enters as an embedding."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.label = nn.Embedding(num_classes + 1, channels) if num_classes else None
        self.last = nn.Conv2d(channels, 1, 1)

    def forward(self, features: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.first(self.norm(features))
        if self.label is not None and label is not None:
            h = h + self.label(label)[:, :, None, None]
        return self.last(F.silu(h)).flatten(1)


class LevelHeads(nn.Module):
    """feature maps [B, C_k, h_k, w_k] of several levels, label [B] or None -> values [B, h_k * w_k]
    of a head on each."""

    def __init__(self, widths: Sequence[int], num_classes: int):
        super().__init__()
        self.levels = nn.ModuleList(Heads(width, num_classes) for width in widths)

    def forward(self, *maps: Tensor, label: Tensor | None = None) -> list[Tensor]:
        return [head(features, label) for head, features in zip(self.levels, maps, strict=True)]


class WithHeads(nn.Module):
    """A network whose encoder is shared with a critic (Yin et al. 2024, sec. 4.3): one that has
    `encode`, `decode` and `middle_width`.

    `net(x, t, r, label)` is that network's output F; `net(..., values=True)` is (F, values [B, K]).
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.heads = Heads(network.middle_width, network.num_classes)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        r: Tensor | None = None,
        label: Tensor | None = None,
        values: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if not values:
            return self.network(x, t, r, label)
        encoded = self.network.encode(x, t, r, label)
        return self.network.decode(encoded), self.heads(encoded.middle, label)
