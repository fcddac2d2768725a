"""The data set emoji: its list, its split, and its pictures against those that lie in the font."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.data import ImageSource, drawing, load_data
from core.data import emoji as module
from core.data.emoji import DEBIAN, attributes, gender_class, held_out, kind, listed, tone_class
from core.errors import UserError
from core.networks.captions import caption_set, make_caption_set
from core.networks.text import TextConfig

LIST = """# group: Smileys & Emotion
# subgroup: face-smiling
1F600                                      ; fully-qualified     # 😀 E1.0 grinning face
263A                                       ; unqualified         # ☺ E0.6 smiling face
# group: People & Body
1F469 1F3FF 200D 1F3EB                     ; fully-qualified     # 👩🏿‍🏫 E4.0 woman teacher: dark skin tone
# group: Component
1F3FB                                      ; component           # 🏻 E1.0 light skin tone
"""
here = pytest.mark.skipif(
    not all(file.is_file() for file in DEBIAN.values()),
    reason="apt-get install fonts-noto-color-emoji unicode-data",
)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_the_list_is_read():
    first, second = listed(LIST)
    assert first == ("\U0001f600", "grinning face", "Smileys & Emotion")
    assert second.text == "\U0001f469\U0001f3ff\u200d\U0001f3eb"
    assert second.caption == "woman teacher: dark skin tone" and second.group == "People & Body"


def test_what_captions_say():
    said = {
        "woman teacher: dark skin tone": ("teacher", 5, 1),
        "teacher: light skin tone": ("teacher", 1, 0),
        "men holding hands: medium skin tone, medium-dark skin tone": ("holding hands", 6, 2),
        "kiss: woman, man, dark skin tone, dark skin tone": ("kiss: woman, man", 5, 3),
        "man: medium-light skin tone, red hair": (": red hair", 2, 2),
        "woman and man holding hands": ("and man holding hands", 0, 3),
        "human": ("human", 0, 0),
    }
    for caption, (of, tone, gender) in said.items():
        got = kind(caption).strip(" :"), tone_class(caption), gender_class(caption)
        assert got == (of.strip(" :"), tone, gender), caption


def words(caption: str) -> tuple[tuple[str, ...], set[str]]:
    """What is shown, without a first word that says a gender, and the tones; read otherwise than
    the module does."""
    tones = {part.split(" skin")[0] for part in re.findall(r"\S+ skin tone", caption)}
    rest = re.split(r"[\s:,]+", re.sub(r"\S+ skin tone", "", caption).strip(" :,"))
    first = rest[0] in ("man", "woman", "men", "women", "person")
    return tuple(rest[first:]), tones


@here
def test_combinations_are_held_out_and_their_parts_are_not():
    captions = [e.caption for e in listed(DEBIAN["emoji-test.txt"].read_text(encoding="utf-8"))]
    test = {c for c, held in zip(captions, held_out(captions), strict=True) if held}
    train = set(captions) - test
    shown: dict[tuple, set] = {}
    for caption in train:
        things, tones = words(caption)
        shown.setdefault(things, set()).update(tones)
    for caption in test:
        things, tones = words(caption)
        assert len(shown[things]) == 4, caption  # the kind, in the other four tones
        assert tones - shown[things], caption  # and never in this one
    assert len(test) > 150


@here
def test_the_words_that_ship_are_those_of_the_data(tmp_path):
    train, test = load_data("emoji"), load_data("emoji", "test")
    make_caption_set(train.captions, test.captions, tmp_path)
    for name in ("tokenizer.json", "held_out.txt"):
        shipped = Path("core/networks/caption_sets/emoji") / name
        assert (tmp_path / name).read_bytes() == shipped.read_bytes()
    assert not set(train.captions) & set(caption_set("emoji").held_out)
    tokens = TextConfig().tokens(train.captions)
    assert len(tokens.unique(dim=0)) > 0.99 * len(train)  # captions stay apart


@here
def test_pictures_are_those_in_the_font():
    """The bitmaps that the font holds of single signs, taken out by fontTools."""
    ttLib = pytest.importorskip("fontTools.ttLib")
    font = ttLib.TTFont(DEBIAN["NotoColorEmoji.ttf"])
    names, strike = font.getBestCmap(), font["CBDT"].strikeData[0]
    signs = ["\U0001f534", "\U0001f600", "\U0001f355"]  # red circle, grinning face, pizza
    drawn = drawing.draw(signs, signs, DEBIAN["NotoColorEmoji.ttf"], 32)
    for sign, image in zip(signs, drawn, strict=True):
        picture = Image.open(io.BytesIO(strike[names[ord(sign)]].imageData)).convert("RGBA")
        square = Image.new("RGBA", (136, 136), "white")
        square.alpha_composite(picture, (0, 4))
        known = np.asarray(square.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS))
        error = np.abs(image.permute(1, 2, 0).numpy().astype(int) - known)
        assert error.mean() < 2, (sign, error.mean())  # blending in another order rounds otherwise


@here
def test_drawn_twice_is_the_same_and_kept_whole(cache, monkeypatch):
    few = listed(DEBIAN["emoji-test.txt"].read_text(encoding="utf-8"))[::500]
    monkeypatch.setattr(module, "listed", lambda text: few)
    first = load_data("emoji")
    file = next(cache.iterdir())
    monkeypatch.setattr(module, "draw", None)  # what is kept is not drawn again
    assert load_data("emoji").sha256 == first.sha256
    monkeypatch.undo()
    monkeypatch.setattr(module, "CACHE", cache)
    monkeypatch.setattr(module, "listed", lambda text: few)
    file.write_bytes(file.read_bytes()[:-1])
    assert load_data("emoji").sha256 == first.sha256
    assert load_data("emoji", side=64).images.shape == (len(first), 3, 64, 64)
    assert len(list(cache.iterdir())) == 2

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "draw", broken)
    file.unlink()
    with pytest.raises(KeyboardInterrupt):
        load_data("emoji")
    assert len(list(cache.iterdir())) == 1


@here
def test_a_batch_brings_the_caption_of_its_image():
    config = TextConfig()
    data = load_data("emoji").seen_by(0, config)
    batch = ImageSource(data, seed=3).draw(torch.arange(40), torch.device("cpu"))
    stored = data.images.flatten(1)
    for image, tokens in zip(((batch.x0 + 1) * 127.5).round().byte(), batch.condition.text):
        which = (stored == image.flatten()).all(1).nonzero().flatten().tolist()
        assert any(torch.equal(tokens, config.tokens([data.captions[i]])[0]) for i in which)
    assert batch.condition.label is None


def test_what_is_missing_or_does_not_fit_is_said(tmp_path, monkeypatch):
    for name in ("EMOJI_FONT", "EMOJI_LIST"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"apt-get install fonts-noto-color-emoji .*\$EMOJI_FONT"):
        load_data("emoji")
    with pytest.raises(UserError, match="drawn at 32 or 64"):
        load_data("emoji", side=48)
    monkeypatch.setenv("EMOJI_FONT", __file__)
    with pytest.raises(UserError, match="EMOJI_LIST"):
        load_data("emoji")
    (tmp_path / "nothing").write_text("no list")
    monkeypatch.setenv("EMOJI_LIST", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no fully-qualified emoji"):
        load_data("emoji")
    (tmp_path / "emoji-test.txt").write_text(LIST, encoding="utf-8")
    (tmp_path / "NotoColorEmoji.ttf").write_bytes(b"none")
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    with pytest.raises(UserError, match="is no colour font"):
        load_data("emoji", root=str(tmp_path))
    with pytest.raises(UserError, match="'digits' has no captions"):
        load_data("digits").seen_by(0, TextConfig())


@here
def test_a_list_newer_than_the_font_is_refused(cache, tmp_path, monkeypatch):
    newer = LIST + "1F469 200D 1F469 200D 1F9A0 ; fully-qualified # x E99.0 women of the future\n"
    (tmp_path / "emoji-test.txt").write_text(newer, encoding="utf-8")
    monkeypatch.setenv("EMOJI_LIST", str(tmp_path / "emoji-test.txt"))
    with pytest.raises(UserError, match="cannot draw 'women of the future'"):
        load_data("emoji")
    assert not cache.exists() or not list(cache.iterdir())


def test_attributes_are_numbered_as_they_are_named():
    found = attributes(("boy: medium skin tone", "hammer"))
    assert found["tone"].values[int(found["tone"].labels[0])] == "medium"
    assert found["gender"].values[int(found["gender"].labels[0])] == "man"
    assert found["tone"].labels[1] == found["gender"].labels[1] == 0
