"""Sets of captions: the words that a small text encoder knows, and the captions that take turns
where nobody chose. They ship in core/networks/caption_sets, or lie in any folder."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from core.errors import UserError, nearest, reason
from core.files import read_text, write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenizers import Tokenizer

SHIPPED = Path(__file__).parent / "caption_sets"
WORDS, HELD_OUT = "tokenizer.json", "held_out.txt"
PAD, UNKNOWN = "[PAD]", "[UNK]"  # numbers 0 and 1


class CaptionSet(NamedTuple):
    """tokenizer: of words, 0 for padding; held_out: captions that no training image has."""

    tokenizer: Tokenizer
    held_out: tuple[str, ...]


def make_caption_set(trained: Iterable[str], held_out: Sequence[str], folder: Path) -> None:
    """Writes the set of a data set: every word of the `trained` captions, in alphabetical order,
    and the captions held out, both as files in `folder`.

    Words are what spaces, colons, commas and quotation marks part, in small letters, so that
    "medium-light" is one.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    parts = pre_tokenizers.Split(Regex(r"[\s:,“”]+"), "removed")
    lower = normalizers.Lowercase()
    words = {w for c in trained for w, _ in parts.pre_tokenize_str(lower.normalize_str(c))}
    numbered = {word: number for number, word in enumerate([PAD, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(numbered, UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, parts
    write_text(folder / WORDS, tokenizer.to_str(pretty=True) + "\n")
    write_text(folder / HELD_OUT, "".join(f"{caption}\n" for caption in held_out))


@lru_cache(maxsize=8)
def caption_set(name: str) -> CaptionSet:
    """A shipped set by name, or that of a folder.

    Raises:
        UserError: there is none, a file of it is damaged, or the library is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError("captions are read by the library tokenizers: pip install it") from error
    folder = SHIPPED / name if (SHIPPED / name).is_dir() else Path(name).expanduser()
    for file in (WORDS, HELD_OUT):
        if not (folder / file).is_file():
            known = [place.name for place in SHIPPED.iterdir() if place.is_dir()]
            given = f"network.text.captions={name}"
            raise UserError(f"{given}: {folder / file} does not exist{nearest(name, known)}")
    try:
        tokenizer = Tokenizer.from_str(read_text(folder / WORDS))
    except UserError:
        raise
    except Exception as error:  # the library raises no other kind
        raise UserError(f"{folder / WORDS} is no tokenizer: {reason(error)}") from error
    if tokenizer.token_to_id(PAD) != 0 or tokenizer.token_to_id(UNKNOWN) is None:
        raise UserError(f"{folder / WORDS}: {PAD} must be token 0, and {UNKNOWN} a token")
    held_out = tuple(line for line in read_text(folder / HELD_OUT).splitlines() if line)
    if not held_out:
        raise UserError(f"{folder / HELD_OUT} is empty: one caption a line")
    return CaptionSet(tokenizer, held_out)


def word_tokens(name: str, captions: Sequence[str], length: int) -> Tensor:
    """int64 [N, length] in the words of that set.

    Raises:
        UserError: a caption has too many words, or one that the set has not.
    """
    tokenizer = caption_set(name).tokenizer
    rows = torch.zeros(len(captions), length, dtype=torch.int64)
    for i, encoding in enumerate(tokenizer.encode_batch(list(captions))):
        if len(encoding.ids) > length:
            raise UserError(
                f"caption '{captions[i]}' has {len(encoding.ids)} words, more than "
                f"network.text.length={length}"
            )
        if (unknown := tokenizer.token_to_id(UNKNOWN)) in encoding.ids:
            begin, end = encoding.offsets[encoding.ids.index(unknown)]
            word = captions[i][begin:end]
            near = nearest(word.lower(), tokenizer.get_vocab())
            raise UserError(f"caption '{captions[i]}': no training caption has '{word}'{near}")
        rows[i, : len(encoding.ids)] = torch.tensor(encoding.ids, dtype=torch.int64)
    return rows
