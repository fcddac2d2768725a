"""The harness's benchmark sees what a point costs: a harness that samples twice is measured at
twice the bare loop."""

from __future__ import annotations

import re

import eval.sweep.points
from tests.helpers.command_lines import run_script
from tests.helpers.tiny import train_tiny


def ratio_of(capsys, run, *options: str) -> float:
    capsys.readouterr()
    code, errors = run_script(
        "benchmarks.harness",
        str(run),
        "--steps",
        "20",
        "--n",
        "200",
        "--metrics-n",
        "300",
        *options,
    )
    assert code == 0, errors
    out = capsys.readouterr().out
    assert {"distance", "bootstrap", "kid", "precision and recall", "all of a row"} <= set(
        re.findall(r"^\| ([a-z ]+) \|", out, re.MULTILINE)
    )
    return float(re.search(r"a point of the harness \| [\d.]+ \| ([\d.]+) \|", out)[1])


def test_overhead_is_seen(tmp_path, monkeypatch, capsys):
    run = tmp_path / "teacher"
    train_tiny(run, images=64)
    once = ratio_of(capsys, run, "--bootstrap", "2")
    share = eval.sweep.points.PointSampler._sample_share

    def twice(self, *arguments):
        share(self, *arguments)
        return share(self, *arguments)

    monkeypatch.setattr(eval.sweep.points.PointSampler, "_sample_share", twice)
    assert 0.6 < ratio_of(capsys, run, "--bootstrap", "2") - once < 1.5
