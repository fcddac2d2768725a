"""The one exception for what a user can mend, and what a command line says when something goes
wrong: always one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from functools import wraps

LONGEST = 1500  # characters of a line


class UserError(Exception):
    """One clear line: what is wrong, where, and what to do. Command lines print it and exit with
    code 2."""

    def __str__(self) -> str:
        return one_short_line(super().__str__())


def one_line(text: object) -> str:
    """`text` with newlines and other characters that do not print written as escapes, such as
    \\n: names of files and keys may hold any."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def one_short_line(text: object) -> str:
    """`one_line`, without its middle where it has more than LONGEST characters: what a command was
    given may be of any length."""
    line = one_line(text)
    if len(line) <= LONGEST:
        return line
    return f"{line[: LONGEST * 2 // 3]} [...] {line[-LONGEST // 3 + 8 :]}"


def reason(error: BaseException, limit: int = 120) -> str:
    """What another library's error says, in one line of at most `limit` characters; its class where
    it says nothing."""
    return one_line(" ".join(str(error).split()))[:limit] or type(error).__name__


def nearest(name: str, known) -> str:
    """`" (did you mean 'x'?)"` for the closest known name, or the list of all of them when nothing
    is close."""
    known = sorted(map(str, known))
    close = get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"


ALLOCATOR = ("not enough memory", "can't allocate memory")  # PyTorch's own, on a processor


def in_words(error: Exception) -> str | None:
    """The line for what is no fault of the program: the user's input, the machine's memory, or a
    place that cannot be read or written. None for anything else."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        places = " and ".join(str(name) for name in (error.filename, error.filename2) if name)
        what = os.strerror(error.errno) if error.errno else reason(error)
        return one_short_line(f"{places}: {what}" if places else what)
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if memory or (isinstance(error, RuntimeError) and any(w in str(error) for w in ALLOCATOR)):
        return f"out of memory ({reason(error)}): make the batch or the network smaller"
    return None


def _flush_or_drop() -> None:
    """Flushes stdout; where that fails, what is left goes nowhere, since the interpreter would try
    again when it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def command_line(main: Callable[[], None]) -> Callable[[], None]:
    """Wraps a script's `main`: a UserError, a place that cannot be read or written, or memory that
    does not suffice becomes one line on stderr and exit code 2, Ctrl-C becomes 130. A reader that
    goes away, such as `head`, ends it without a word."""

    @wraps(main)
    def wrapped() -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # where the locale is not UTF-8, ± becomes ?
                stream.reconfigure(errors="replace")
        try:
            try:
                main()
            except SystemExit:  # of --help
                _flush_or_drop()
                raise
            _flush_or_drop()
        except BrokenPipeError:
            with suppress(OSError):
                _flush_or_drop()
            sys.exit(141)  # what a shell says of a program that SIGPIPE ended
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if (words := in_words(error)) is None:
                raise
            print(f"error: {words}", file=sys.stderr)
            sys.exit(2)

    return wrapped
