"""What steers the blocks of a network: times, a label, a weight of guidance and a caption as one
vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from core.networks.text import Caption, Read, TextConfig

GUIDANCE_SCALE = 4.0  # radians of the fastest wave per unit of the weight: it acts smoothly


def sinusoidal_embedding(t: Tensor, width: int, scale: float = 1000.0) -> Tensor:
    """Embeds times t [B] in [0, 1] as [B, width]. At scale 1000 they are DDPM's integer steps."""
    half = width // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    frequency = torch.exp(
        -math.log(10_000.0) / half * torch.arange(half, device=t.device, dtype=t.dtype)
    )
    phase = scale * t[:, None] * frequency
    return torch.cat([phase.cos(), phase.sin()], dim=1)  # [B, width]


def zeroed(module: nn.Module) -> nn.Module:
    """Zero-initialised, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def embedder(inputs: int, outputs: int, from_zero: bool = False) -> nn.Sequential:
    """Two layers behind a sinusoidal embedding; from_zero: their output starts at 0."""
    first, last = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)
    return nn.Sequential(first, nn.SiLU(), zeroed(last) if from_zero else last)


def embedded_label(table: nn.Embedding, label: Tensor | None, x: Tensor) -> Tensor:
    """[B, E] of label [B], whose last number is the null label; None: that for each of x [B, ...]."""
    if label is None:
        label = torch.full((len(x),), table.num_embeddings - 1, device=x.device)
    return table(label)


class Embedded(nn.Module):
    """A network with embeddings of what it is told: the base of those whose blocks are steered by
    one vector.

    Args:
        waves: numbers of a sinusoidal embedding; even.
        embedding: numbers E of the vector.
        num_classes: 0 = unconditional. Otherwise labels are 0..num_classes, where num_classes is
            the null label.
        second_time: embeds a second time r besides t, in a way that starts at nothing.
        guidance: embeds the weight of guidance, in a way that starts at nothing.
        time_scale: what times are multiplied by before they are embedded.
        text: how captions are read, in a way that starts at nothing; None: they are not.
    """

    def __init__(
        self,
        waves: int,
        embedding: int,
        num_classes: int = 0,
        second_time: bool = False,
        guidance: bool = False,
        time_scale: float = 1000.0,
        text: TextConfig | None = None,
    ):
        super().__init__()
        self.waves, self.num_classes, self.time_scale = waves, num_classes, time_scale
        self.time = embedder(waves, embedding)
        self.second_time = embedder(waves, embedding, from_zero=True) if second_time else None
        self.label = nn.Embedding(num_classes + 1, embedding) if num_classes else None
        self.guidance = embedder(waves, embedding, from_zero=True) if guidance else None
        self.text = None if text is None else Caption(text, embedding)
        self.context = 0 if self.text is None else self.text.width  # numbers of a caption's state

    def embedded(
        self,
        x: Tensor,
        t: Tensor,
        r: Tensor | None = None,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
        text: Tensor | None = None,
    ) -> tuple[Tensor, Read | None]:
        """The vector [B, E] in x's dtype, and the caption that was read, if captions are; t [B] in
        [0, 1], r [B] or None, label [B] (int64) or None for the null label, guidance [B] or None
        for none, 1.0, text [B, L] (int64) or None for the null caption."""
        if (r is not None) != (self.second_time is not None):
            raise ValueError(
                "r must be given exactly when the network was built with second_time=True"
            )
        if self.label is None and label is not None:
            raise ValueError(
                "this network is unconditional: it was built with num_classes=0, so label must be None"
            )
        if self.guidance is None and guidance is not None:
            raise ValueError("this network was built without guidance=True")
        if self.text is None and text is not None:
            raise ValueError("this network reads no captions, so text must be None")

        def waves(value: Tensor, scale: float) -> Tensor:
            return sinusoidal_embedding(value, self.waves, scale).to(x.dtype)

        embedding = self.time(waves(t, self.time_scale))
        if r is not None:
            embedding = embedding + self.second_time(waves(r, self.time_scale))
        if self.label is not None:
            embedding = embedding + embedded_label(self.label, label, x)
        if self.guidance is not None:
            given = torch.ones_like(t) if guidance is None else guidance.to(t.dtype)
            embedding = embedding + self.guidance(waves(given, GUIDANCE_SCALE))
        if self.text is None:
            return embedding, None
        caption, pooled = self.text(text, len(x))
        return embedding + pooled, caption
