"""plot, report and compare on curves files with a fault each: drawn without what is missing, or one
line that says what is wrong; never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.command_lines import refused, run_script
from tests.helpers.rows import row

SHARES = {"precision": 0.9, "recall": 0.8, "seconds_per_image": 0.1, "class_histogram": (5, 5)}
ROWS = [
    json.loads(one.json_line())
    for one in (
        row("floor", None, 1.0, precision=0.9, recall=0.9, class_histogram=(1, 1)),
        *(row("ddpm", steps, 8.0 / steps, **SHARES) for steps in (1, 2)),
        *(row("mine", steps, 9.0 / steps, **SHARES) for steps in (1, 2)),
    )
]


def write(folder: Path, change, rows=ROWS) -> Path:
    """The rows with `change` applied to the sampled ones, as a curves file."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = [{**r, **(change(r) if r["sampler"] else {})} for r in rows]
    file = folder / "curves.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in changed))
    return file


def commands(file: Path) -> list[tuple[str, ...]]:
    markdown = file.parent / "table.md"
    return [
        ("plot", file, "--out", file.parent, "--markdown", markdown, "--relative-to", "ddpm"),
        ("report", file, "--images", 0),
        ("compare", file, "--a", "ddpm", "--b", "mine"),
    ]


OPTIONAL = ("precision", "recall", "kid", "fid_std", "fid_error", "class_histogram", "device")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: dict.fromkeys((*OPTIONAL, "seconds_per_image", "commit", "config_sha256")),
        lambda r: {"precision": None} if r["steps"] == 1 else {"recall": None},
        lambda r: {"fid": 0.0, "fid_std": 0.0} if r["method"] == "mine" else {},
        lambda r: {"fid": -1e-9, "fid_std": 1e29} if r["method"] == "mine" else {},
        lambda r: {"fid": 9.9e29, "nfe": 9.9e29, "fid_std": 9.9e29, "seconds_per_image": 9.9e29},
        lambda r: {"nfe": 1e-300, "seconds_per_image": 1e-300, "fid": 1e-300},
        lambda r: {"class_histogram": [1, 2, 3]},
        lambda r: {"fid_error": "2 sets", "sets": 2, "n": 2**53 - 1},
        lambda r: {"train_evals": 0.0, "train_images": 0, "train_seconds": 0.0},
        lambda r: {"train_evals": 1.0, "teacher": r["run"]},
        lambda r: {"reference": "", "extractor_sha256": "", "commit": "", "dataset": ""},
    ],
    ids=[
        "nothing optional", "half covered", "zero", "below zero", "huge", "tiny", "other classes",
        "two sets", "free", "its own teacher", "empty words",
    ],
)  # fmt: skip
def test_what_can_be_drawn_is_drawn(tmp_path, change):
    file = write(tmp_path, change)
    for command in commands(file):
        code, errors = run_script(*command)
        assert code == 0, (command, errors)
    assert "DDPM teacher" in (tmp_path / "table.md").read_text()


def test_the_lowest_may_be_no_divisor(tmp_path):
    file = write(tmp_path, lambda r: {"fid": 0.0})
    said = refused(tmp_path, *commands(file)[0])
    assert "the lowest FD@449 of run 'ddpm' is 0: no ratio to it" in said


@pytest.mark.parametrize("key, value", [("nfe", None), ("extractor_sha256", None), ("n", "a\nb")])
def test_what_cannot_be_read_is_one_line(tmp_path, key, value):
    file = write(tmp_path, lambda r: {key: value})
    for command in commands(file):
        assert f"{file}, line 2: key '{key}'" in refused(tmp_path, *command)


def test_rows_without_a_distance_are_said_once(tmp_path):
    file = write(tmp_path, lambda r: {"fid": None} if r["steps"] == 1 else {})
    for command in commands(file):
        code, errors = run_script(*command)
        assert code == 0 and errors.count("rows left out for want of a finite fid: 2") == 1
    file = write(tmp_path, lambda r: {"fid": float("nan")})
    for command in commands(file):
        code, errors = run_script(*command)
        assert code == 2 and "holds no measured points" in errors.splitlines()[-1]


def test_the_last_of_equal_rows_counts(tmp_path):
    again = [{**r, "fid": 5.0} for r in ROWS if r["method"] == "mine"]
    file = write(tmp_path, lambda r: {}, [*ROWS, *again])
    code, errors = run_script(*commands(file)[0])
    assert code == 0, errors
    (line,) = [
        text for text in (tmp_path / "table.md").read_text().splitlines()[:8] if "| mine" in text
    ]
    assert line.count("5.00") == 2


@pytest.mark.parametrize(
    "samples, broken",
    [
        ("samples/gone.png", True),
        ("samples/\0.png", True),
        ("..", True),
        ("samples/text.png", True),
        ("samples/narrow.png", False),
        ("samples/flat.png", False),
        ("../outside.png", True),
        ("samples/link.png", True),
    ],
)
def test_samples_that_are_no_strips(tmp_path, samples, broken):
    """They stay empty, and are named. The page takes a picture of any shape, the printed one only
    those of whole squares."""
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "text.png").write_text("no picture")
    Image.new("L", (12, 8)).save(folder / "narrow.png")
    Image.new("L", (16, 8)).save(folder / "whole.png")
    Image.new("L", (1, 1)).save(folder / "flat.png")
    Image.new("L", (16, 8)).save(tmp_path.parent / "outside.png")
    (folder / "link.png").symlink_to(folder / "whole.png")
    file = write(
        tmp_path, lambda r: {"samples": samples if r["steps"] == 1 else "samples/whole.png"}
    )
    for command in commands(file)[:2]:
        code, errors = run_script(*command)
        narrow = samples == "samples/narrow.png" and command[0] == "plot"
        assert code == 0 and ("warning: " in errors) == (broken or narrow), errors
