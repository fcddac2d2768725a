"""Captions as a network is told them: tokens, an encoder of them, and attention to what it gives.

Tokens are int64 [B, L], 0 for padding. A row of padding alone is the empty caption, which is the
null caption of classifier-free guidance. The encoder belongs to the network, so that its weights
are trained, averaged and kept with the network's.

The small encoder is a transformer (Vaswani et al. 2017) with norms first and learned positions.
The network attends to its states (Rombach et al. 2022, sec. 3.3), and the first state is added to
the embedding of times (Saharia et al. 2022, app. A: pooled embeddings).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.config import Strict
from core.networks.attention import attend
from core.networks.captions import caption_set, word_tokens
from core.networks.pretrained_text import PretrainedText, pretrained_tokens


class TextConfig(Strict):
    """How captions are read."""

    captions: str = "emoji"
    """set of captions that ships (core/networks/caption_sets), or a folder with tokenizer.json and
    held_out.txt: the words that are known, and the captions that take turns where nobody chose"""
    length: int = Field(default=12, ge=1, le=512)
    """most tokens of a caption"""
    encoder: str | None = None
    """folder or hub id of a text encoder of Hugging Face, which stays as it is and brings its own
    tokens; null: a small one that is trained with the network"""
    width: int = Field(default=64, ge=4, le=4096)
    """of the small encoder's states"""
    layers: int = Field(default=2, ge=1, le=64)
    """of the small encoder"""
    heads: int = Field(default=4, ge=1, le=64)
    """of the small encoder's attention"""

    @model_validator(mode="after")
    def _divides(self) -> TextConfig:
        if self.encoder is None and self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        return self

    def tokens(self, captions: list[str] | tuple[str, ...]) -> Tensor:
        """int64 [N, length]; the empty caption is a row of zeros.

        Raises:
            UserError: a caption has too many tokens, or a word that the small encoder never saw.
        """
        if self.encoder is not None:
            return pretrained_tokens(self.encoder, captions, self.length)
        return word_tokens(self.captions, captions, self.length)

    def in_turn(self, indices: Tensor) -> Tensor:
        """int64 [B, length]: of samples with these global indices [B], where nobody chose: the held
        out captions take turns."""
        held_out = caption_set(self.captions).held_out
        chosen = [held_out[i] for i in (indices % len(held_out)).tolist()]
        return self.tokens(chosen).to(indices.device)

    def build(self) -> TextEncoder | PretrainedText:
        """A freshly initialised small encoder, or the pretrained one; raises UserError where that
        is not to be had."""
        if self.encoder is not None:
            return PretrainedText(self.encoder)
        words = caption_set(self.captions).tokenizer.get_vocab_size()
        return TextEncoder(words, self.length, self.width, self.layers, self.heads)


def same_tokens(one: TextConfig | None, other: TextConfig | None) -> bool:
    """Whether both read the same tokens of any caption, or none at all."""
    if one is None or other is None:
        return one is other
    return all(
        getattr(one, key) == getattr(other, key) for key in ("captions", "length", "encoder")
    )


class TextEncoder(nn.Module):
    """tokens [B, L] -> states [B, 1 + L, width] and which of them count, bool [B, 1 + L].

    A token of its own stands first and always counts, so that the empty caption has a state too.
    """

    def __init__(self, words: int, length: int, width: int, layers: int, heads: int):
        super().__init__()
        self.width = width
        self.words = nn.Embedding(words, width)
        self.first = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first.expand(len(tokens), 1, -1)
        states = torch.cat([first, self.words(tokens)], 1) + self.positions[: 1 + tokens.shape[1]]
        counts = nn.functional.pad(tokens > 0, (1, 0), value=True)
        return self.layers(states, src_key_padding_mask=~counts), counts


class CrossAttention(nn.Module):
    """h [B, N, channels] asks the states of a caption [B, L, context] -> what is to be added to h.

    Its output starts at zero. States that do not count have weight 0 exactly.
    """

    def __init__(self, channels: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(context, 2 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, states: Tensor, counts: Tensor) -> Tensor:
        """counts: bool [B, L]."""

        def by_head(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N or L, d]

        q = by_head(self.q(h))
        k, v = (by_head(part) for part in self.kv(states).chunk(2, dim=-1))
        seen = attend(q, k, v, counts[:, None, None])  # [B, heads, N, d]
        return self.out(seen.transpose(1, 2).flatten(2))


class Read(NamedTuple):
    """A caption as it was read: states [B, L, D], and which of them count, bool [B, L]."""

    states: Tensor
    counts: Tensor


class Caption(nn.Module):
    """What a network of embedding width E is told of a caption: tokens [B, L] -> the caption as it
    was read, and what is added to the embedding [B, E], which starts at zero."""

    def __init__(self, config: TextConfig, embedding: int):
        super().__init__()
        self.encoder = config.build()
        self.length, self.width = config.length, self.encoder.width
        self.pooled = nn.Linear(self.width, embedding)
        nn.init.zeros_(self.pooled.weight)
        nn.init.zeros_(self.pooled.bias)

    def forward(self, tokens: Tensor | None, count: int) -> tuple[Read, Tensor]:
        """tokens None: the null caption, `count` times."""
        if tokens is None:
            device = self.pooled.weight.device
            tokens = torch.zeros(count, self.length, dtype=torch.int64, device=device)
        read = Read(*self.encoder(tokens))
        return read, self.pooled(read.states[:, 0])
