"""Writes the words and the held-out captions of a data set, which networks that read captions take
by its name: `python -m scripts.maintain.make_captions emoji`.

A model's tokens are numbers in this list of words, so a set that models were trained with must not
be written anew for another version of the data: give it another name."""

from __future__ import annotations

import argparse

from core.data import load_data
from core.errors import UserError, command_line
from core.networks.captions import SHIPPED, caption_set, make_caption_set


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="a data set with captions")
    parser.add_argument("--name", help="of the set (default: that of the data set)")
    a = parser.parse_args()
    train, test = load_data(a.dataset), load_data(a.dataset, "test")
    if not train.captions:
        raise UserError(f"data set '{a.dataset}' has no captions")
    folder = SHIPPED / (a.name or a.dataset)
    folder.mkdir(parents=True, exist_ok=True)
    make_caption_set(train.captions, test.captions, folder)
    words, held_out = caption_set(str(folder))
    print(f"{folder}: {words.get_vocab_size()} words, {len(held_out)} captions held out")


if __name__ == "__main__":
    main()
