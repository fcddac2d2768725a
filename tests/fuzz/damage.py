"""Random damage to a file, as disks, editors, copies and strangers do it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from hypothesis import strategies as st

from tests.fuzz.mistakes import with_mistakes

TEXTS = (b"", b"\0", b"null", b"[]", b"{}", b"0", b'"x"', b"\xff\xfe", b"{\n", b"- a\n", b"a: *b\n",
         b"[" * 5000, b"NaN", b"PK\3\4", b"\x80\x02]q\0.", b"\x89PNG\r\n\x1a\n", bytes(64),
         b"\x08\0\0\0\0\0\0\0{}      ", b"x: 2026-01-01\n")  # fmt: skip
PARSED = (".json", ".yaml", ".jsonl")


@st.composite
def damages(draw, file: Path):
    """A function that damages a copy of the file, whose name says how."""
    content = file.read_bytes()
    how = draw(
        st.sampled_from(("cut", "flip", "zeros", "text", "gone", "folder", "loop") + ("edit",) * 5)
    )
    if how == "edit" and file.suffix in PARSED:
        return Damage(how, _edited(draw, file))
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    if how == "cut":
        return Damage(how, content[:place])
    if how == "zeros":
        return Damage(how, content[:place] + bytes(len(content) - place))
    if how == "text":
        return Damage(how, draw(st.sampled_from(TEXTS)))
    if how in ("gone", "folder", "loop"):
        return Damage(how, None)
    flipped = bytearray(content)
    if flipped:
        flipped[place] ^= 1 << draw(st.integers(0, 7))
    return Damage("flip", bytes(flipped))


def _edited(draw, file: Path) -> bytes:
    """The file with other values, missing or further keys."""
    if file.suffix == ".yaml":
        values = draw(with_mistakes(yaml.safe_load(file.read_bytes())))
        with suppress(yaml.YAMLError, UnicodeEncodeError):
            return yaml.safe_dump(values).encode()
        return b"? "
    if file.suffix == ".json":
        values = draw(with_mistakes({"": json.loads(file.read_bytes())}))
        return json.dumps(values.get("")).encode()
    lines = file.read_bytes().splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    values = draw(with_mistakes(json.loads(lines[number])))
    lines[number] = json.dumps(values).encode()
    return b"\n".join(lines) + b"\n"


class Damage:
    """content: what the file then holds; None: there is none."""

    def __init__(self, how: str, content: bytes | None):
        self.how, self.content = how, content

    def __repr__(self) -> str:
        content = self.content
        return f"{self.how} {content if content is None else content[:300]!r}"

    @contextmanager
    def done_to(self, file: Path) -> Iterator[None]:
        """The file is damaged in the block, and whole afterwards."""
        content = file.read_bytes()
        file.unlink()
        try:
            if self.content is not None:
                file.write_bytes(self.content)
            elif self.how == "folder":
                file.mkdir()
            elif self.how == "loop":
                file.symlink_to(file.name)
            yield
        finally:
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            elif os.path.lexists(file):
                file.unlink()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
