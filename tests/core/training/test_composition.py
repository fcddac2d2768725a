"""Whether a network that reads captions composes: coloured digits, whose training set lacks a colour
of every digit, drawn from captions that name just those."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.condition import Condition
from core.data import ImageData, load_data
from core.data.sources import SOURCES
from core.networks.captions import make_caption_set
from core.noise import Noise
from core.runs import Run
from core.sampling.sample import sample
from core.setting import Setting
from eval.features.classifiers import load_classifier
from lab import load
from tests.helpers.text import WORDS
from tests.helpers.tiny import train_tiny

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "white": (255, 255, 255),
}
HELD_OUT = [f"{list(COLOURS)[digit % 5]} {WORDS[digit]}" for digit in range(10)]


def coloured(split: str, root: str | None, side: int | None) -> ImageData:
    """scikit-learn's digits, each in one of the four colours that its digit is shown in."""
    data = load_data("digits", split)
    drawn = Noise(0, torch.arange(len(data))).integers(4, "colour")
    colour = (data.labels % 5 + 1 + drawn) % 5  # never digit % 5
    paint = torch.tensor(list(COLOURS.values()))[colour]
    images = (data.images.float() * paint[:, :, None, None] / 255).round().to(torch.uint8)
    names = [
        f"{list(COLOURS)[c]} {WORDS[k]}" for c, k in zip(colour.tolist(), data.labels.tolist())
    ]
    return replace(data, images=images, captions=tuple(names))


def seen(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The digits and colours of images [N, 3, 8, 8]: by the shipped classifier of grey digits, and
    by the nearest direction of the mean colour."""
    digits = load_classifier("digits-cnn")[0](images.amax(1, keepdim=True)).argmax(1)
    mean = torch.nn.functional.normalize(images.float().mean((2, 3)), dim=1)
    known = torch.nn.functional.normalize(torch.tensor(list(COLOURS.values())).float(), dim=1)
    return digits, (mean @ known.T).argmax(1)


def shares(run: Run, captions: list[str], scale: float) -> tuple[float, float, float]:
    """Of 200 samples of captions in turn, in 8 steps of DDIM: the shares with the right digit, with
    the right colour, and with both."""
    chosen = [captions[i % len(captions)] for i in range(200)]
    setting = Setting(sampler="ddim", steps=8, guidance_scale=scale)
    told = Condition(text=run.spec.text.tokens(chosen))
    x = sample(run.model, setting, Noise(0, torch.arange(200)), told)
    digits, colours = seen(run.model.codec.decode(x))
    parts = [caption.split() for caption in chosen]
    digit = digits == torch.tensor([WORDS.index(word) for _, word in parts])
    colour = colours == torch.tensor([list(COLOURS).index(word) for word, _ in parts])
    return tuple(float(hit.float().mean()) for hit in (digit, colour, digit & colour))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_colour_that_a_digit_was_never_seen_in(tmp_path, monkeypatch):
    """In 750 steps the colours of captions are learned and the digits not yet all, so the bar is
    what a network that read the colour alone could not reach."""
    monkeypatch.setitem(SOURCES, "coloured", coloured)
    train = coloured("train", None, None)
    assert not set(train.captions) & set(HELD_OUT) and len(set(train.captions)) == 40
    digits, colours = seen(train.images)
    assert float((digits == train.labels).float().mean()) > 0.97
    said = [list(COLOURS).index(caption.split()[0]) for caption in train.captions]
    assert colours.tolist() == said
    make_caption_set(train.captions, HELD_OUT, tmp_path)
    text = {"captions": str(tmp_path), "length": 2, "width": 32, "layers": 2, "heads": 4}
    train_tiny(
        tmp_path / "run",
        data={"name": "coloured"},
        images=48_000,
        lr=2e-3,
        network={"widths": [32], "blocks": 2, "attention": [0], "conditional": False, "text": text},
        method={"label_dropout": 0.1},
        optimizer={"warmup": 2000, "decay": "cosine"},
        ema={"half_life": 5000},
        log={"metrics_every": 10_000, "checkpoint_every": 24_000},
    )
    run = load(tmp_path / "run")
    for words, captions in (("seen", sorted(set(train.captions))), ("held out", HELD_OUT)):
        for scale in (1.0, 2.0, 4.0):
            found = shares(run, captions, scale)
            print(f"{words}, guidance {scale:g}: digit, colour, both right in", *found)
    chance, deviation = 0.1, (0.1 * 0.9 / 200) ** 0.5
    assert found[1] > 0.9 and found[2] > chance + 5 * deviation
