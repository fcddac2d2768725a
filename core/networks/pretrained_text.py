"""A text encoder of Hugging Face, as it is: never trained, with its own tokens.

Here a token is its number there plus 1, so that 0 stays padding; a row of padding alone is given to
the encoder as what its tokenizer makes of the empty text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import UserError, reason


def _load(name: str, which: Callable[[Any], Any]) -> Any:
    """Something of the library for that encoder; raises UserError where it is not to be had."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"network.text.encoder={name} needs the library transformers: pip install transformers"
        ) from error
    try:
        return which(transformers).from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"network.text.encoder={name} cannot be loaded: {reason(error)}") from error


@lru_cache(maxsize=2)
def _tokenizer(name: str) -> Any:
    return _load(name, lambda library: library.AutoTokenizer)


def pretrained_tokens(name: str, captions: Sequence[str], length: int) -> Tensor:
    """int64 [N, length]; raises UserError for a caption of more tokens, or an encoder that is not
    to be had."""
    tokenizer = _tokenizer(name)
    rows = torch.zeros(len(captions), length, dtype=torch.int64)
    for i, caption in enumerate(captions):
        if not caption:
            continue
        ids = tokenizer(caption)["input_ids"]
        if len(ids) > length:
            raise UserError(
                f"caption '{caption}' has {len(ids)} tokens, more than network.text.length={length}"
            )
        rows[i, : len(ids)] = torch.tensor(ids) + 1
    return rows


class PretrainedText(nn.Module):
    """tokens [B, L] -> states [B, 1 + L, width] and which of them count, as `TextEncoder`; the
    first is the mean of those that count, since encoders differ in which stands for the whole.

    Its parameters never learn (core/training/roles.py asks for `stays`), and they are kept with the
    network's.
    """

    stays = True

    def __init__(self, name: str):
        super().__init__()
        model = _load(name, lambda library: library.AutoModel)
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        # Of a pair of an image and a text encoder, such as CLIP, the latter
        self.model = getattr(model, "text_model", model)
        self.model.eval().requires_grad_(False)
        config = getattr(self.model, "config", None)
        self.width = int(config.hidden_size)
        empty = _tokenizer(name)("")["input_ids"] or [0]
        self.register_buffer("empty", torch.tensor(empty) + 1, persistent=False)

    def train(self, mode: bool = True) -> PretrainedText:
        """Stays in evaluation mode, so that no dropout of its own comes in."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        missing = len(self.empty) - tokens.shape[1]
        tokens = nn.functional.pad(tokens, (0, max(0, missing)))
        empty = nn.functional.pad(self.empty, (0, tokens.shape[1] - len(self.empty)))
        tokens = torch.where((tokens > 0).any(1, keepdim=True), tokens, empty)
        counts = tokens > 0
        ids = (tokens - 1).clamp(min=0)
        states = self.model(input_ids=ids, attention_mask=counts.long()).last_hidden_state
        share = counts.to(states.dtype)[..., None]
        mean = (states * share).sum(1, keepdim=True) / share.sum(1, keepdim=True)
        counts = nn.functional.pad(counts, (1, 0), value=True)
        return torch.cat([mean, states], 1), counts
