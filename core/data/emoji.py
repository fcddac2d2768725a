"""The data set `emoji`: every emoji of Unicode's list, drawn from a colour font, with its name as
the caption.

A test split holds out combinations. Captions with a skin tone fall into kinds, such as "teacher"
(of a man, a woman or neither), and of every second kind one tone is held out: no training image
shows that kind in that tone, though both are seen apart.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from core.data.dataset import Attribute, ImageData
from core.data.drawing import draw
from core.errors import UserError
from core.files import read_text, sha256_of
from core.tensors import read_tensors, write_tensors

DEBIAN = {
    "NotoColorEmoji.ttf": Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    "emoji-test.txt": Path("/usr/share/unicode/emoji/emoji-test.txt"),
}
VARIABLES = {"NotoColorEmoji.ttf": "EMOJI_FONT", "emoji-test.txt": "EMOJI_LIST"}
CACHE = Path("data/emoji")
SIDES = (32, 64)
VERSION = 1  # of how images are drawn; part of the name of what is kept
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONE = re.compile(r"(medium-light|medium-dark|light|medium|dark) skin tone(?:, )?")
LINE = re.compile(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[0-9.]+ (.+)")
PEOPLE = re.compile(r"\b(?:(wom[ae]n|girl|princess|mermaid)|(m[ae]n|boy|prince|merman))\b")
GENDERS = ("not said", "woman", "man", "both")


class Emoji(NamedTuple):
    """One line of the list: the text that the font draws, its caption and its group."""

    text: str
    caption: str
    group: str


def listed(text: str) -> list[Emoji]:
    """The fully-qualified emoji of an emoji-test.txt, in its order."""
    found, group = [], ""
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif match := LINE.fullmatch(line.strip()):
            codes = [chr(int(code, 16)) for code in match[1].split()]
            found.append(Emoji("".join(codes), match[2], group))
    return found


def tones(caption: str) -> list[str]:
    """The skin tones that a caption names, in its order."""
    return TONE.findall(caption)


def kind(caption: str) -> str:
    """What a caption with skin tones shows, without them and without a leading word of gender:
    "teacher" of "woman teacher: dark skin tone"."""
    bare = TONE.sub("", caption).strip(" :,")
    return re.sub(r"^(?:wo)?m[ae]n\b ?|^person\b ?", "", bare)


def held_out(captions: list[str]) -> list[bool]:
    """Whether each caption belongs to the test split: kinds are numbered as they appear, and of
    every second one a tone is held out, the tones taking turns."""
    numbers: dict[str, int] = {}
    found = []
    for caption in captions:
        named = tones(caption)
        number = numbers.setdefault(kind(caption), len(numbers)) if named else 1
        found.append(number % 2 == 0 and TONES[number // 2 % len(TONES)] in named)
    return found


def tone_class(caption: str) -> int:
    """0: none; 1 to 5: that tone, of one person or of two; 6: two different ones."""
    named = set(tones(caption))
    return 6 if len(named) > 1 else 1 + TONES.index(named.pop()) if named else 0


def gender_class(caption: str) -> int:
    """As the caption says: 0 nothing, 1 woman, 2 man, 3 both (GENDERS)."""
    women, men = zip(*PEOPLE.findall(caption.lower()) or [("", "")], strict=True)
    return bool("".join(women)) + 2 * bool("".join(men))


def attributes(captions: tuple[str, ...]) -> dict[str, Attribute]:
    """What captions say besides their group: "tone" and "gender"."""
    named = {
        "tone": (tone_class, ("none", *TONES, "two different")),
        "gender": (gender_class, GENDERS),
    }
    return {
        name: Attribute(torch.tensor([of(caption) for caption in captions]), values)
        for name, (of, values) in named.items()
    }


def source(name: str, root: str | None) -> Path:
    """The font or the list: from data.root, else from the environment, else Debian's.

    Raises:
        UserError: it is not there, with how to get it.
    """
    variable = VARIABLES[name]
    given = Path(root) / name if root else Path(os.environ.get(variable) or DEBIAN[name])
    if given.is_file():
        return given
    raise UserError(
        f"data set 'emoji' needs {name}, and {given} is not there: apt-get install "
        f"fonts-noto-color-emoji unicode-data, or set ${variable} to a file, or data.root to a "
        "folder with NotoColorEmoji.ttf and emoji-test.txt (github.com/googlefonts/noto-emoji, "
        "unicode.org)"
    )


def _images(emoji: list[Emoji], font: Path, side: int, key: str) -> Tensor:
    """uint8 [N, 3, side, side], drawn once and kept under the hash of all that decides it."""
    name = hashlib.sha256(f"{VERSION} {side} {key}".encode()).hexdigest()[:16]
    file = CACHE / f"{side}-{name}.safetensors"
    found = read_tensors(file, "drawing the emoji again", ("images",))
    if found is not None and len(found[0]["images"]) == len(emoji):
        return found[0]["images"]
    images = draw([e.text for e in emoji], [e.caption for e in emoji], font, side)
    write_tensors(file, {"images": images})
    return images


def emoji(split: str, root: str | None, side: int | None) -> ImageData:
    """Unicode's emoji at 32 or 64 pixels, RGB on white, captioned, 9 groups as classes. Debian 12's
    font and list give 3,655: 3,451 and 204.

    The hash of what was drawn is the hash of the data, which rows and checkpoints carry, so that
    another version of the font is noticed.

    Raises:
        UserError: another side, or no font or list, or they do not belong together.
    """
    side = side or SIDES[0]
    if side not in SIDES:
        raise UserError(f"data.side={side}: emoji are drawn at {SIDES[0]} or {SIDES[1]} pixels")
    font, names = (source(name, root) for name in DEBIAN)
    found = listed(read_text(names))
    if not found:
        raise UserError(f"{names} lists no fully-qualified emoji: it is not an emoji-test.txt")
    images = _images(found, font, side, f"{sha256_of(font)} {sha256_of(names)}")
    groups = list(dict.fromkeys(e.group for e in found))
    test = held_out([e.caption for e in found])
    keep = [i for i, held in enumerate(test) if held == (split == "test")]
    captions = tuple(found[i].caption for i in keep)
    labels = torch.tensor([groups.index(found[i].group) for i in keep])
    return ImageData(
        "emoji",
        split,
        images[torch.tensor(keep)],
        labels,
        len(groups),
        class_names=tuple(groups),
        captions=captions,
        attributes=attributes(captions),
    )
