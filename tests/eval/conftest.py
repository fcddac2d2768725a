"""What the tests of the sweep share: a tiny teacher, a cache of references, and the rows of a sweep
without incidents."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import measure
from tests.helpers.small_sweep import config
from tests.helpers.tiny import train_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train_tiny(folder, images=640, method={"label_dropout": 0.1})
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def uninterrupted(run, cache, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "curves.jsonl"
    measure(config(run, out, cache))
    return out
