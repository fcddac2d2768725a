"""scripts.publish, on a few rows of the published digits, and on rows that are out to do harm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eval.curves_file import append_row
from tests.helpers import rows as made
from tests.helpers.command_lines import refused, run_script, tree

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "results" / "digits"


def publish(*folders: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "VENV": "none", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scripts.publish", *map(str, folders)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_what_is_published_belongs_to_the_rows(tmp_path):
    """Samples of the rows and configs of the runs arrive; pictures of an earlier publication and of
    other weights do not stay."""
    source, out = tmp_path / "runs", tmp_path / "results"
    rows = [
        row
        for row in map(json.loads, (DIGITS / "curves.jsonl").read_text().splitlines())
        if row["steps"] in (None, 1, 2)
    ]
    (source / "samples").mkdir(parents=True)
    (source / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {row["samples"] for row in rows if row.get("samples")}
    for name in names:
        shutil.copy2(DIGITS / name, source / name)
    (source / "samples" / "of-other-weights.png").touch()
    (source / "teacher").mkdir()
    (source / "teacher" / "config.yaml").write_text("run: teacher\n")
    (out / "samples").mkdir(parents=True)
    for name in ("curves-of-another-protocol.png", "samples/earlier.png", "notes.md"):
        (out / name).touch()
    done = publish(source, out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {f"samples/{file.name}" for file in (out / "samples").iterdir()} == names and len(
        names
    ) > 5
    assert [file.name for file in (out / "configs").iterdir()] == ["teacher.yaml"]
    assert not (out / "curves-of-another-protocol.png").exists() and (out / "notes.md").exists()
    for name in ("curves.png", "seconds.png", "samples.png", "table.md", "report.html"):
        assert (out / name).stat().st_size > 0


def test_solvers_are_drawn_with_those_of_the_curve(tmp_path):
    """Their folder holds their rows alone, and pictures and a table of these and of the curve's
    rows of that run and protocol."""
    source, out = tmp_path / "runs", tmp_path / "results"
    rows = [
        row
        for row in map(json.loads, (DIGITS / "curves.jsonl").read_text().splitlines())
        if row["steps"] in (None, 1, 4)
    ]
    teacher = [row for row in rows if row["run"] == "teacher" and row["sampler"] == "unipc"]
    (source / "solvers").mkdir(parents=True)
    (source / "teacher").mkdir()
    (source / "teacher" / "config.yaml").write_text("run: teacher\n")
    other = [row | {"sampler": "ddim", "extractor": "inception-v3-compat"} for row in teacher]
    for folder, some in (
        (source, [row for row in rows if row not in teacher] + other),
        (source / "solvers", teacher),
    ):
        (folder / "curves.jsonl").write_text(
            "".join(json.dumps(row | {"samples": None}) + "\n" for row in some)
        )
    done = publish(source, out)
    assert done.returncode == 0, done.stderr[-2000:]
    table = (out / "solvers" / "table.md").read_text()
    assert (
        "| DDPM teacher, unipc |" in table
        and "| DDPM teacher, heun |" in table
        and "floor" in table
    )
    assert not any(word in table for word in ("consistency", "progressive", "inception"))
    assert "unipc" not in (out / "table.md").read_text()
    assert (out / "solvers" / "curves.png").is_file() and not (
        out / "solvers" / "samples.png"
    ).exists()
    (source / "solvers" / "curves.jsonl").unlink()  # of an earlier publication
    assert publish(source, out).returncode == 0 and not (out / "solvers").exists()


def test_in_place_is_refused_before_anything_is_removed(tmp_path):
    shutil.copytree(DIGITS / "samples", tmp_path / "samples")
    shutil.copy2(DIGITS / "curves.jsonl", tmp_path)
    done = publish(tmp_path, tmp_path / "samples" / "..")
    assert done.returncode == 2 and "are one folder" in done.stderr
    assert any((tmp_path / "samples").iterdir())


@pytest.fixture
def measured(tmp_path) -> Path:
    """A folder of a teacher's rows with their samples, beside a target that was published and
    written in, and a secret picture."""
    source, out = tmp_path / "runs", tmp_path / "results"
    lines = map(json.loads, (DIGITS / "curves.jsonl").read_text().splitlines())
    rows = [row for row in lines if row["run"] == "teacher" and row["steps"] in (1, 2)]
    (source / "samples").mkdir(parents=True)
    for row in rows:
        shutil.copyfile(DIGITS / row["samples"], source / row["samples"])
    _write(source, rows)
    (source / "teacher").mkdir()
    (source / "teacher" / "config.yaml").write_text("run: teacher\n")
    (out / "notes").mkdir(parents=True)
    for name in ("README.md", "notes/a.txt", "curves.jsonl", "table.md", "curves-old.png"):
        (out / name).write_text("kept")
    shutil.copyfile(DIGITS / "curves.png", tmp_path / "secret.png")
    return source


def _rows(source: Path) -> list[dict]:
    return [json.loads(line) for line in (source / "curves.jsonl").read_text().splitlines()]


def _write(source: Path, rows: list[dict]) -> None:
    (source / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_everything_else_in_the_target_stays(measured, tmp_path):
    code, errors = run_script("publish", measured, tmp_path / "results")
    assert code == 0, errors
    found = tree(tmp_path / "results")
    assert found["README.md"] == b"kept" and found["notes/a.txt"] == b"kept"
    assert found["table.md"] != b"kept" and "curves-old.png" not in found
    assert found["curves.jsonl"] == (measured / "curves.jsonl").read_bytes()
    assert not [file for file in tmp_path.rglob("*.partial")]


NAMES = (
    "../secret.png",
    "samples/../../secret.png",
    "/etc/hostname",
    "../../../work/scripts/train.py",
    "samples/sub/x.png",
    "samples/x.png/../../../secret.png",
    "samples/x.txt",
    "samples/x.png\n",
    "samples/x y.png",
    "samples/\0.png",
    "samples/.png/",
    "samples",
    "",
    ["samples/x.png"],
    {"a": 1},
    7,
    True,
)


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_samples_with_other_names_are_refused(measured, tmp_path, name):
    first, *rest = _rows(measured)
    _write(measured, [first | {"samples": name}, *rest])
    line = refused(tmp_path, "publish", measured, tmp_path / "results")
    assert "samples" in line
    assert ("NAME of letters" if isinstance(name, str) else "should be a valid string") in line


@pytest.mark.parametrize("key", ["dataset", "extractor", "reference"])
def test_rows_cannot_name_pictures_elsewhere(measured, tmp_path, key):
    first, *rest = _rows(measured)
    _write(measured, [first | {"samples": None}, rest[0] | {key: "/../../../x"}, *rest[1:]])
    assert f"{key} = '/../../../x'" in refused(tmp_path, "publish", measured, tmp_path / "results")


def test_links_are_neither_followed_nor_copied(measured, tmp_path):
    """Of samples, their folder, the rows, a config, a run, the solvers, and in the target."""
    secret, target = tmp_path / "secret.png", tmp_path / "results"
    for place in (
        measured / _rows(measured)[0]["samples"],
        measured / "samples",
        measured / "curves.jsonl",
        measured / "teacher" / "config.yaml",
        measured / "teacher",
        measured / "solvers",
        target / "link",
        target / "notes" / "link",
        target / "notes" / "dangling",
    ):
        kept = tmp_path / "kept"
        existed = place.exists()
        if existed:
            place.rename(kept)
        place.symlink_to(
            tmp_path / "nowhere" if place.name == "dangling" else kept if existed else secret
        )
        if place.name == "solvers":
            place.unlink()
            place.symlink_to(measured / "samples", target_is_directory=True)
        line = refused(tmp_path, "publish", measured, target)
        assert "link" in line, line
        place.unlink()
        if existed:
            kept.rename(place)
    os.mkfifo(target / "pipe")  # reading it would wait for ever
    assert "no file" in refused(tmp_path, "publish", measured, target)
    (target / "pipe").unlink()
    file = measured / _rows(measured)[0]["samples"]
    file.unlink()
    os.mkfifo(file)
    assert "no plain file" in refused(tmp_path, "publish", measured, target)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"root:x:0:0"])
def test_samples_must_be_pictures(measured, tmp_path, content):
    name = _rows(measured)[0]["samples"]
    (measured / name).write_bytes(content)
    assert "no PNG" in refused(tmp_path, "publish", measured, tmp_path / "results")


def test_targets_that_hold_other_things_are_refused(measured, tmp_path):
    (tmp_path / "file").write_text("x")
    for target, words in (
        (tmp_path, "holds"),
        (ROOT, "holds"),
        (ROOT.parent, "holds"),
        (Path("/"), "holds"),
        (measured, "one folder"),
        (measured / "teacher", "is in"),
        (tmp_path / "file", "no folder"),
    ):
        before = tree(tmp_path)
        code, errors = run_script("publish", measured, target)
        assert code == 2 and words in errors and errors.count("\n") == 1, (target, errors)
        assert tree(tmp_path) == before
    shutil.copytree(measured, tmp_path / "other-runs")
    assert "holds the run teacher" in refused(
        tmp_path, "publish", measured, tmp_path / "other-runs"
    )
    assert "does not exist" in refused(tmp_path, "publish", tmp_path / "none", tmp_path / "results")


def test_nothing_changes_when_drawing_fails(measured, tmp_path):
    """Rows that read and cannot be drawn: the target is as it was."""
    _write(measured, [row | {"fid": 0.0} for row in _rows(measured)])
    assert "no ratio to it" in refused(tmp_path, "publish", measured, tmp_path / "results")


def test_a_study_is_published_with_its_table_and_keeps_its_answer(tmp_path):
    study, target = tmp_path / "runs" / "study", tmp_path / "results" / "study"
    (study / "cells").mkdir(parents=True)
    (study / "cells" / "a.json").write_text("{}")
    append_row(study / "curves.jsonl", made.row("flow", 1, 3.0, run="flow-1234-seed0"))
    (study / "table.md").write_text("# study\n")
    (study / "axis-lr.png").write_bytes(b"png")
    target.mkdir(parents=True)
    (target / "README.md").write_text("the answer")
    (target / "axis-old.png").write_bytes(b"of an axis that is gone")
    code, errors = run_script("publish", str(study), str(target))
    assert code == 0, errors
    left = {file.name: file.read_bytes() for file in target.iterdir()}
    assert set(left) == {"README.md", "table.md", "curves.jsonl", "axis-lr.png"}
    assert left["README.md"] == b"the answer"
    assert left["curves.jsonl"] == (study / "curves.jsonl").read_bytes()
    (study / "table.md").unlink()
    (study / "table.md").symlink_to("/etc/hostname")
    assert "is a link" in refused(tmp_path, "publish", str(study), str(target))
