"""Search for the times of a sampler of few steps, as the code of consistency models has it: one
time after the other by ternary search, the others held."""

from __future__ import annotations

from collections.abc import Callable


def search_times(
    distance: Callable[[tuple[float, ...]], float],
    start: tuple[float, ...],
    rounds: int = 2,
    tolerance: float = 1 / 32,
) -> tuple[tuple[float, ...], float]:
    """The inner times, decreasing in (0, 1), with the smallest distance that was met, and it.

    Every round goes over all times, the noisiest first, and searches each between its neighbours to
    `tolerance`. A distance with several minima in one time may be left in any of them, and never
    above where it started.
    """
    known = {tuple(start): distance(tuple(start))}

    def at(times: tuple[float, ...]) -> float:
        if times not in known:
            known[times] = distance(times)
        return known[times]

    times = tuple(start)
    for _ in range(rounds):
        before = times
        for i in range(len(times)):
            low = times[i + 1] if i + 1 < len(times) else 0.0
            high = times[i - 1] if i else 1.0
            while high - low > tolerance:
                third = (high - low) / 3
                first, second = (
                    at((*times[:i], t, *times[i + 1 :])) for t in (low + third, high - third)
                )
                low, high = (low, high - third) if first < second else (low + third, high)
            times = min(known, key=known.get)
        if times == before:
            break
    return times, known[times]
