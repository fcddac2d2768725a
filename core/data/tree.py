"""The pictures in a folder and below it, and one line for each kind of thing that was passed
over."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageFile, UnidentifiedImageError

from core.data.pixels import Span, opened, span
from core.errors import UserError

HIDDEN = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin")


@cache
def _say(line: str) -> None:
    """Once a process, since both splits are read from the same files, and by the first of several
    processes."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


class Notes:
    """What the user is told about a folder: names under a heading, up to three of them shown."""

    OTHER, HIDDEN, CIRCLE = "that are no images", "that are hidden", "that link to a folder above"
    SKIPPED = "left out because they cannot be read"
    FRAMES = "with several frames, of which the first is taken"
    TURNED = "with EXIF data that cannot be read, taken as they lie in the file"

    def __init__(self, base: Path):
        self.base = base
        self.names: dict[str, list[str]] = {}
        self.lines: list[str] = []

    def add(self, heading: str, path: Path) -> None:
        self.names.setdefault(heading, []).append(str(path.relative_to(self.base)))

    def _words(self, heading: str) -> str:
        names = self.names[heading]
        shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        return f"{len(names)} {heading} ({shown})"

    def say(self) -> None:
        together = (self.OTHER, self.HIDDEN, self.CIRCLE)
        passed = [self._words(heading) for heading in together if heading in self.names]
        lines = [f"passed over {', '.join(passed)}"] if passed else []
        for heading in (self.SKIPPED, self.FRAMES, self.TURNED):
            lines += [self._words(heading)] if heading in self.names else []
        for line in lines + self.lines:
            _say(f"data.root={self.base}: {line}")


class Picture(NamedTuple):
    """A file that Pillow reads. place: its path relative to the folder, in parts; span: see
    core.data.pixels."""

    path: Path
    place: tuple[str, ...]
    span: Span | None


@contextmanager
def reading(path: Path, notes: Notes, skip: bool) -> Iterator[None]:
    """Any failure in the block names the file in a UserError; with `skip` it is noted, and the
    block ends there."""
    try:
        yield
    except Exception as error:  # Pillow and numpy raise nearly every kind for broken files
        if skip:
            notes.add(Notes.SKIPPED, path)
            return
        if isinstance(error, UserError):
            raise
        known = isinstance(error, UnidentifiedImageError)
        why = "" if known else f" ({type(error).__name__}: {' '.join(str(error).split())})"
        raise UserError(
            f"{path} is not a readable image{why}: remove or replace it, "
            "or set data.skip_unreadable=true"
        ) from error


def _files(folder: Path, notes: Notes, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Everything below `folder` but what is hidden; links are followed, but not in a circle."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in above:
            notes.add(Notes.CIRCLE, folder)
            return
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.name.lower() in HIDDEN:
                notes.add(Notes.HIDDEN, path)
            elif path.is_dir():
                yield from _files(path, notes, (*above, (status.st_dev, status.st_ino)))
            else:
                yield path
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}") from error


def _is_picture(image: Image.Image) -> bool:
    """Not so: formats that Pillow recognises and cannot decode (GRIB, HDF5, MPEG, ...)."""
    return not isinstance(image, ImageFile.StubImageFile) and image.format != "MPEG"


def pictures_in(base: Path, notes: Notes, skip: bool) -> list[Picture]:
    """Every file below `base` that Pillow reads, whatever its name, in the order of the names.

    A file that Pillow does not know is passed over, unless its name is that of an image.

    Raises:
        UserError: a file that is named as an image and is none, is broken or too large, or holds
            values that are not finite, and `skip` is not set; a folder that cannot be read.
    """
    suffixes = {s for s, format in Image.registered_extensions().items() if format in Image.OPEN}
    found = []
    for path in _files(base, notes) if base.is_dir() else ():
        if not path.is_file() and not path.is_symlink():  # pipes and devices
            notes.add(Notes.OTHER, path)
            continue
        with reading(path, notes, skip):
            try:
                with opened(path) as image:
                    if not _is_picture(image):
                        notes.add(Notes.OTHER, path)
                        continue
                    if getattr(image, "is_animated", False):
                        notes.add(Notes.FRAMES, path)
                    found.append(Picture(path, path.relative_to(base).parts, span(image, path)))
            except UnidentifiedImageError:
                if path.suffix.lower() in suffixes:
                    raise
                notes.add(Notes.OTHER, path)
    return sorted(found, key=lambda picture: picture.place)
