"""The one exception for what a user can mend: a wrong key, a missing file, a checkpoint that does
not fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps


class UserError(Exception):
    """One clear line: what is wrong, where, and what to do. Command lines print it and exit with
    code 2."""


def nearest(name: str, known) -> str:
    """`" (did you mean 'x'?)"` for the closest known name, or the list of all of them when nothing
    is close."""
    known = sorted(map(str, known))
    close = get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"


def command_line(main: Callable[[], None]) -> Callable[[], None]:
    """Wraps a script's `main`: a UserError becomes one line on stderr and exit code 2, Ctrl-C
    becomes 130."""

    @wraps(main)
    def wrapped() -> None:
        try:
            main()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            sys.exit(130)

    return wrapped
