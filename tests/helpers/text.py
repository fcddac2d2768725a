"""Captions for tests: digits named in words, and tiny text encoders of Hugging Face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.data import ImageData, load_data
from core.data.sources import SOURCES
from core.networks.captions import make_caption_set

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def caption_of(digit: int) -> str:
    """ "an even four", "an odd three"."""
    return f"an {'odd' if digit % 2 else 'even'} {WORDS[digit]}"


def captioned(split: str, root: str | None, side: int | None) -> ImageData:
    """scikit-learn's digits with a caption each."""
    data = load_data("digits", split)
    return replace(data, captions=tuple(caption_of(int(k)) for k in data.labels))


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The data set `captioned`, and the values of a config's section `text` that reads it."""
    monkeypatch.setitem(SOURCES, "captioned", captioned)
    folder = tmp_path / "words"
    folder.mkdir()
    make_caption_set(map(caption_of, range(10)), [caption_of(k) for k in (3, 8)], folder)
    return {"captions": str(folder), "length": 4, "width": 8, "layers": 1, "heads": 2}


def tiny_bert(folder: Path) -> str:
    """A random BERT of 8 numbers a state and a word-level tokenizer, saved as a library's."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "an", "even", "odd", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)
