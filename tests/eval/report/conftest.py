"""A measured folder that the tests of the page share."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config import parse
from eval.curves_file import append_row, read_rows
from eval.report.document import write_report
from eval.sweep.config import SweepConfig
from lab import load, measure
from tests.helpers.rows import changed
from tests.helpers.tiny import train_tiny


@pytest.fixture(scope="package")
def folder(tmp_path_factory) -> Path:
    """curves.jsonl of a teacher, its consistency student and a flow, with the runs beside it and
    the page made from them."""
    folder = tmp_path_factory.mktemp("measured")
    train_tiny(folder / "teacher", images=640)
    student = {"teacher": str(folder / "teacher"), "steps_start": 4, "steps_end": 8}
    train_tiny(folder / "student", "consistency", images=320, method=student)
    train_tiny(folder / "flow", "rectified-flow", path="rectified", prediction="u", images=320)
    values = {
        "out": str(folder / "curves.jsonl"),
        "runs": str(folder),
        "extractor": "digits-cnn",
        "n": 30,
        "bootstrap": 4,
        "device": "cpu",
        "cache": str(folder / "cache"),
        "entries": [
            {"run": "teacher", "samplers": ["ddim", "heun"], "steps": [1, 2, 4]},
            {"run": "student", "samplers": ["consistency"], "steps": [1, 2]},
            {"run": "flow", "samplers": ["euler"], "steps": [1, 2, 4]},
        ],
    }
    measure(parse(SweepConfig, values, "test"))
    # Another protocol, and text that would end the block of data if it were written as it is.
    row = next(r for r in read_rows(folder / "curves.jsonl") if r.method == "ddpm")
    other = {
        "metric": "FID",
        "extractor": "inception-v3-compat",
        "n": 50_000,
        "device": "</script><b>",
    }
    append_row(folder / "curves.jsonl", changed(row, **other))
    write_report(folder / "curves.jsonl", folder / "report.html", load, steps=[1, 4], images=3)
    return folder
