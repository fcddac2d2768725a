"""Text of tables and messages: names on one line, numbers with their errors, Markdown that shows
them as they are; and names of files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence


def one_line(text: str) -> str:
    """The text with every character that does not print (newlines, control characters) written as
    its escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def file_name(words: Iterable) -> str:
    """A name for a file from words: letters, digits and - _ + . alone, of bearable length."""
    name = "-".join(map(str, words)).replace(" ", "-")[:100]
    return "".join(c if c.isalnum() or c in "-_+." else "_" for c in name)


def short_hash(content) -> str:
    """12 digits that tell contents of one form (tuples of plain values) apart."""
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


def number(value: float, std: float | None = None) -> str:
    """A distance with its error, in as many digits as are worth reading, and enough to see that the
    error is not zero."""
    if max(abs(value), std or 0.0) >= 1e6:
        return f"{value:.3g}" + (f" ± {std:.2g}" if std is not None else "")
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    while std and digits < 3 and not round(std, digits):
        digits += 1
    return f"{value:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def counted(count: int, noun: str) -> str:
    """ "1 step", "8 steps"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def markdown(text: str) -> str:
    """Text that Markdown shows as it is: no table cell ends in it, no HTML, formula or emphasis
    begins."""
    return re.sub(r"([\\|*`~<>&$\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", one_line(text))


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table of cells that are escaped here; the first `left` columns are words, the
    others numbers."""
    rule = "|---" * left + "|---:" * (len(header) - left) + "|"
    lines = ["| " + " | ".join(map(markdown, cells)) + " |" for cells in [header, *body]]
    return "\n".join([lines[0], rule, *lines[1:]])


def text_table(lines: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Aligned columns, flush right apart from those numbered in `left`; short lines are filled
    up."""
    columns = max(map(len, lines))
    filled = [[*map(one_line, line), *[""] * (columns - len(line))] for line in lines]
    widths = [max(map(len, column)) for column in zip(*filled)]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))
        ).rstrip()
        for line in filled
    )
