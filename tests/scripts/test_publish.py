"""publish.sh, on a few rows of the published digits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "results" / "digits"


def publish(*folders: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "VENV": "none", "OMP_NUM_THREADS": "1"}
    command = ["bash", "scripts/publish.sh", *map(str, folders)]
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
    assert "| ddpm unipc |" in table and "| ddpm heun |" in table and "floor" in table
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
