"""The progress bar: its unit is the budget's, and a resumed run's speed is that of the work done
since."""

from __future__ import annotations

import re

import pytest
import torch

from core.training.config import parse_run_config
from core.training.tracking import Tracker
from lab import method_class
from tests.helpers.tiny import tiny_config


@pytest.mark.parametrize("unit", ["img", "eval"])
def test_a_resumed_run_is_as_fast_as_it_is(tmp_path, unit):
    """90 % were done before; 10 more of 1,000 in 2 seconds leave 90, so 18 seconds at 5 a
    second."""
    sections = {} if unit == "img" else {"budget": {"images": None, "evals": 1000.0}}
    config = parse_run_config(
        tiny_config(tmp_path, images=1000, **sections), method_class("ddpm"), "test"
    )
    tracker = Tracker(config, images=300, used=900.0, budget=1000.0, stages=["train"], enabled=True)
    step = {"loss": torch.zeros(1), "t": torch.zeros(1), "grad_norm": torch.zeros(())}
    tracker.bar.start_t -= 2  # seconds ago
    tracker.step(images=310, used=910.0, stage=0, step=step)
    shown = str(tracker.bar)
    tracker.close()
    # The bar's own clock runs on: on a busy machine a little more than 2 seconds have passed.
    speed = float(re.search(rf"910/1.00k \[00:0\d<00:\d\d, ([\d.]+){unit}/s", shown)[1])
    assert 2 < speed <= 5, shown
