"""Random changes to a valid config, and how what comes of it is judged."""

from __future__ import annotations

import copy
import math
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from core.errors import in_words
from tests.helpers import inputs

PATIENCE = 60  # seconds of the processor that one input may take
MEMORY = 2 * 10**9  # bytes
NUMBERS = (0, 1, 2, 3, 5, 7, 8, 9, 12, 16, 64, 100, 1000, -1, -2, 10**6, 2**31, 2**53, 2**63 - 1, 2**63,
           -(2**63), 10**40, 0.0, -0.0, 0.1, 0.5, 0.999999, 1.0, 1.5, -0.5, 1e-9, 1e-45, 5e-324, 1e9, 1e30,
           1e300, 1.7e308, -1e300, math.nan, math.inf, -math.inf)  # fmt: skip
TEXTS = ("", " ", "x", ".", "nan", "1", "null", "é", "a\nb", "\0", "\ud800", "x" * 300, "none",
         "eps", "x0", "v", "u", "mean-velocity", "rectified", "vp-linear", "vp-cosine", "trigonometric",
         "unet", "generator", "autoencoder", "affine", "uniform", "logit-normal", "u-shaped", "ddim",
         "ddpm", "heun", "euler", "unipc", "consistency", "flow-map", "dpm++3m", "time", "lam", "karras",
         "edm", "quadratic", "trailing", "leading-offset", "linspace-multistep", "static", "dynamic",
         "static-x0", "squared", "pseudo-huber", "simple", "min-snr", "truncated-snr", "cosine", "linear",
         "cpu", "cuda", "cuda:7", "mps", "meta", "gpu", "digits-cnn", "fashion-cnn", "inception",
         "digits", "folder", "output", "inverse-gap", "difference", "forward", "raw", "ema", "test",
         "white", "#12345g", "crop", "pad")  # fmt: skip
OTHERS = (None, True, False, [], {}, [[]], [None], [0], [-1], [1.5], [1, 1], [2, 1], [8, 12], [10**9],
          ["x"], ["digits-cnn", "digits-cnn"], {"name": "x"}, {"name": "table", "schedule": "linear"},
          {"name": "consistency"}, {"eta": 0.5}, {"eta": -1.0}, {"eta": 1e300}, {"x": 1.0})  # fmt: skip
whole_numbers = st.one_of(
    st.sampled_from([n for n in NUMBERS if isinstance(n, int)]), st.integers(-3, 40), st.integers()
)
numbers = st.one_of(st.sampled_from(NUMBERS), st.floats(-2, 2), st.floats())
anything = st.one_of(numbers, st.sampled_from(TEXTS), st.sampled_from(OTHERS))


def alike(value: Any) -> st.SearchStrategy:
    """Values of the same kind, which a config is likelier to take."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        near = st.sampled_from((value + 1, max(value - 1, 0), value * 2, value // 2, value * 10))
        return near | near | whole_numbers
    if isinstance(value, float):
        near = st.sampled_from((value * 2, value / 2, value * 10, value / 10, value + 0.1))
        return near | near | numbers
    if isinstance(value, list):
        return st.lists(alike(value[0]) if value else st.integers(0, 2), max_size=4)
    return st.sampled_from(TEXTS) if isinstance(value, str) else anything


def places(config: Any, above: tuple = ()) -> list[tuple]:
    """The path of every key and element of a config, sections and lists themselves included."""
    inner: Iterator = iter(())
    if isinstance(config, dict):
        inner = iter(config.items())
    elif isinstance(config, list):
        inner = iter(enumerate(config))
    found = []
    for key, value in inner:
        found += [(*above, key), *places(value, (*above, key))]
    return found


@st.composite
def with_mistakes(draw, config: dict, most: int = 2) -> dict:
    """The config with up to `most` of its values changed, removed, doubled or swapped, or with a
    key that it has not."""
    config = copy.deepcopy(config)
    for _ in range(draw(st.sampled_from((1, 1, most)))):
        if not (there := sorted(places(config), key=repr)):
            break
        *above, last = draw(st.sampled_from(there))
        section = config
        for key in above:
            section = section[key]
        what = draw(st.sampled_from(("alike",) * 7 + ("value", "gone", "double", "new")))
        if what == "alike":
            section[last] = draw(alike(section[last]))
        elif what == "value":
            section[last] = draw(anything)
        elif what == "gone":
            del section[last]
        elif what == "double" and isinstance(section[last], list):
            section[last] = section[last] * 2
        elif isinstance(section, dict):
            section[f"{last}x"] = section[last]
    return config


def examples(share: float) -> settings:
    """Of the profile's number of inputs this share: some take longer than others."""
    return settings(max_examples=max(5, round(settings.default.max_examples * share)))


class Enough(Exception):
    """It works as far as was asked."""


class Hang(BaseException):
    """It took longer than PATIENCE."""


def _late(*_: object) -> None:
    raise Hang


@contextmanager
def limits(more: int = MEMORY) -> Iterator[None]:
    """Raises Hang in the block after PATIENCE, and lets it have `more` bytes than there are in
    use."""
    old, memory = signal.signal(signal.SIGPROF, _late), resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, memory[1]))
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.signal(signal.SIGPROF, old)


def works_or_one_line(act: Callable[[], Any]) -> bool:
    """Whether it works. Else it must raise what a command line prints as one line, in time."""
    try:
        with limits():
            act()
    except Enough:
        pass
    except Exception as error:
        line = in_words(error)
        if line is None:
            raise
        assert line and len(line.splitlines()) == 1 and line.isprintable() and len(line) < 2000
        inputs.note(worked=False)
        return False
    inputs.note(worked=True)
    return True
