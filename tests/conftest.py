"""One thread: the tests' tensors are too small to share, and other jobs may be running. Hypothesis
tries a few inputs, or many where HYPOTHESIS_PROFILE=long is set."""

import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.helpers import inputs

torch.set_num_threads(1)
# A shell's background jobs ignore it, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines are shared, so no example has a deadline; the short profile tries the same inputs always.
slow = [HealthCheck.too_slow]
settings.register_profile(
    "short",
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=slow,
)
settings.register_profile("long", max_examples=3_000, deadline=None, suppress_health_check=slow)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory):
    """The shipped configs, shrunken, and what was made of them (tests/helpers/laboratory.py)."""
    from tests.helpers.laboratory import Laboratory

    return Laboratory(tmp_path_factory.mktemp("laboratory"))


@pytest.fixture(autouse=True)
def _inputs(record_property):
    """What the test tries goes into its report, from whichever process."""
    before = inputs.tried.copy()
    yield
    if counts := inputs.tried - before:
        record_property("inputs", dict(counts))


def pytest_runtest_logreport(report):
    if report.when == "teardown":
        for name, value in report.user_properties:
            if name == "inputs":
                inputs.collect(report.nodeid, value)


def pytest_terminal_summary(terminalreporter):
    if lines := inputs.table():
        terminalreporter.section("random inputs")
        terminalreporter.write_line("\n".join(lines))
