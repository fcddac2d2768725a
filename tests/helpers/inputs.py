"""How many random inputs were tried, and what came of them: counted in tests, said at their end."""

from __future__ import annotations

from collections import Counter

WORKED, REFUSED = "worked", "refused in one line"
tried: Counter[str] = Counter()  # of this process
_of_tests: dict[str, Counter[str]] = {}  # of all processes, by the name of the test


def note(worked: bool) -> None:
    """One input that worked, or was refused as it should be."""
    tried[WORKED if worked else REFUSED] += 1


def collect(test: str, counts: dict[str, int]) -> None:
    """Adds what one test has tried, in whichever process; cases of a parameter are one test."""
    _of_tests.setdefault(test.split("[")[0], Counter()).update(counts)


def table() -> list[str]:
    """A line for each test that tried any."""
    return [
        f"{sum(counts.values()):>7} {test}: "
        + ", ".join(f"{counts[what]} {what}" for what in (WORKED, REFUSED))
        for test, counts in sorted(_of_tests.items())
    ]
