"""The repository on its way to a machine without a network, and results on their way back."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from core.data.sources import files_of
from core.errors import UserError
from scripts import carry
from scripts.wheels import needed, requirements_of
from tests.helpers.command_lines import ROOT


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A small repository in the place of this one, with a commit."""
    folder = tmp_path / "here"
    (folder / "scripts").mkdir(parents=True)
    (folder / "requirements.txt").write_text("torch>=2.8\nwandb>=0.19\n-r more.txt\n")
    (folder / "more.txt").write_text("numpy  # arrays\n")
    (folder / "scripts" / "go.sh").write_text("echo go\n")
    (folder / "scripts" / "go.sh").chmod(0o755)
    (folder / "results").mkdir()
    (folder / "results" / "large.txt").write_text("x" * 5000)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for line in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *line], cwd=folder, check=True)
    monkeypatch.setattr(carry, "ROOT", folder)
    monkeypatch.setattr(carry, "commit", lambda: "c0ffee")
    monkeypatch.chdir(folder)
    return folder


def run(monkeypatch, *arguments: object) -> None:
    """The command's work, its errors as they are."""
    monkeypatch.setattr(sys, "argv", ["carry", *map(str, arguments)])
    carry.main.__wrapped__()


def content(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as packed:
        return {m.name: packed.extractfile(m).read() for m in packed}


def test_what_goes_out(clone, tmp_path, monkeypatch):
    (clone / "runs").mkdir()
    (clone / "runs" / "a.bin").write_bytes(b"\0\1")
    archive = tmp_path / "out.tar.gz"
    options = ("--leave", "results", "--without", "WandB", "--data", "digits")
    run(monkeypatch, "out", archive, "runs", *options)
    found = content(archive)
    lab = "fast-sampling-lab/"
    assert found == {
        f"{lab}more.txt": b"numpy  # arrays\n",
        f"{lab}requirements.txt": b"torch>=2.8\n-r more.txt\n",
        f"{lab}scripts/go.sh": b"echo go\n",
        f"{lab}COMMIT": b"c0ffee\n",
        f"{lab}runs/a.bin": b"\0\1",
    }
    with tarfile.open(archive) as packed:
        assert packed.getmember(f"{lab}scripts/go.sh").mode & 0o100
    again = tmp_path / "again.tar.gz"
    run(monkeypatch, "out", again, "runs", *options)
    assert again.read_bytes() == archive.read_bytes()


def test_there_and_back(clone, tmp_path, monkeypatch):
    (clone / "runs" / "a").mkdir(parents=True)
    (clone / "runs" / "a" / "row.txt").write_text("1")
    run(monkeypatch, "back", tmp_path / "home.tar.gz", "runs/a")
    (clone / "runs" / "a" / "row.txt").unlink()
    run(monkeypatch, "in", tmp_path / "home.tar.gz")
    assert (clone / "runs" / "a" / "row.txt").read_text() == "1"
    run(monkeypatch, "in", tmp_path / "home.tar.gz")  # what is the same is no obstacle
    (clone / "runs" / "a" / "row.txt").write_text("2")
    with pytest.raises(UserError, match=r"row\.txt exists and differs"):
        run(monkeypatch, "in", tmp_path / "home.tar.gz")
    assert (clone / "runs" / "a" / "row.txt").read_text() == "2"
    assert not list(clone.glob(".carry-*"))


def test_what_is_too_large_leaves_nothing(clone, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"more than --limit 1e-06; .*results 0\.0"):
        run(monkeypatch, "out", tmp_path / "out.tar.gz", "--limit", "1e-6")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out", "a.tar.gz", "--leave", "nothing"], "has no such file or folder"),
        (["out", "a.tar.gz", "--data", "digit"], "did you mean 'digits'"),
        (["out", "a.tar.gz", "--data", "folder"], "name their folder"),
        (["out", "a.tar.gz", "nothing"], "does not exist"),
        (["back", "a.tar.gz", ".."], "is not in"),
        (["back", "a.tar.gz", "link"], "is a link"),
        (["in", "requirements.txt"], "is not an archive of this command"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(clone, monkeypatch, arguments, words):
    (clone / "link").symlink_to("requirements.txt")
    before = sorted(clone.rglob("*"))
    with pytest.raises(UserError, match=words):
        run(monkeypatch, *arguments)
    assert sorted(clone.rglob("*")) == before


def test_files_that_differ_from_the_commit_do_not_go_out(clone, tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "commit", lambda: "c0ffee-dirty")
    with pytest.raises(UserError, match="commit them first"):
        run(monkeypatch, "out", tmp_path / "a.tar.gz")


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "fast-sampling-lab/../../evil"])
def test_names_that_lead_elsewhere_are_refused(clone, tmp_path, monkeypatch, name):
    with tarfile.open(tmp_path / "home.tar.gz", "w:gz") as packed:
        info = tarfile.TarInfo(name)
        info.size = 4
        packed.addfile(info, io.BytesIO(b"evil"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError):
        run(monkeypatch, "in", tmp_path / "home.tar.gz")
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/evil.txt").exists()


@pytest.mark.parametrize(
    "name", [".git/hooks/post-checkout", "yaml.py", "scripts/new.py", "results", "sitecustomize.py"]
)
def test_no_code_comes_back(clone, tmp_path, monkeypatch, name):
    """What git, or the next command's Python, would run: nothing of the archive is put anywhere."""
    with tarfile.open(tmp_path / "home.tar.gz", "w:gz") as packed:
        for member in ("runs/a/row.txt", name):
            info = tarfile.TarInfo(f"{carry.NAME}/{member}")
            info.size = 4
            packed.addfile(info, io.BytesIO(b"evil"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"none of runs, results, data|no folder|not an archive"):
        run(monkeypatch, "in", tmp_path / "home.tar.gz")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="in none of runs, results, data"):
        run(monkeypatch, "back", tmp_path / "a.tar.gz", "requirements.txt")


def test_wheels_are_those_that_something_here_needs():
    """By hand: b comes with a; torch is there, so that its own needs stay behind; d is for another
    system."""

    def package(name: str, *needs: str) -> dict:
        return {"metadata": {"name": name, "version": "1.0", "requires_dist": list(needs)}}

    report = {
        "install": [
            package("A_package", "b>=1", "torch", "d; sys_platform == 'win32'"),
            package("b", "c; extra == 'all'", "A-package"),
            package("c"),
            package("d"),
            package("torch", "nvidia-thing"),
            package("nvidia-thing"),
        ]
    }
    system = {"sys_platform": "linux"}
    assert needed(["a-package"], ["Torch"], report, system) == {"a-package": "1.0", "b": "1.0"}


def test_requirements_follow_their_files(clone):
    found = [requirement.name for requirement in requirements_of(clone / "requirements.txt")]
    assert found == ["torch", "wandb", "numpy"]


def test_rows_name_the_commit_of_the_file(tmp_path):
    """Another process, in a copy of the module's place that has the file."""
    place = tmp_path / "eval" / "sweep"
    place.mkdir(parents=True)
    (place / "machine.py").write_text((ROOT / "eval/sweep/machine.py").read_text())
    (tmp_path / "COMMIT").write_text("c0ffee\n")
    code = "import runpy; print(runpy.run_path('eval/sweep/machine.py')['commit']())"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert said.stdout.strip() == "c0ffee"


def test_files_of_a_data_set_are_where_a_download_puts_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("data/cifar-10-batches-py")
    with pytest.raises(UserError, match="the files of cifar10 are not in"):
        files_of("cifar10")
    folder.mkdir(parents=True)
    (folder / "test_batch").write_bytes(b"1")
    assert files_of("cifar10") == {"data/cifar-10-batches-py/test_batch": folder / "test_batch"}
    assert files_of("checkerboard") == {}


@pytest.mark.parametrize("wheels", [False, True])
def test_packages_come_from_the_wheels_where_there_are_some(tmp_path, wheels):
    (tmp_path / "scripts").mkdir()
    shell = (ROOT / "scripts" / "environment.sh").read_text()
    (tmp_path / "scripts" / "environment.sh").write_text(shell)
    (tmp_path / "requirements.txt").write_text("numpy\n")
    if wheels:
        (tmp_path / "wheels").mkdir()
    python = tmp_path / "python"  # writes down what it is asked for; makes an environment of itself
    python.write_text(
        f'#!/bin/bash\necho "$*" >> {tmp_path}/log\nif [ "$2" = venv ]; then\n'
        f'    mkdir -p "${{@: -1}}/bin" && echo "PATH={tmp_path}:$PATH" > "${{@: -1}}/bin/activate"\nfi\n'
    )
    python.chmod(0o755)
    line = "source scripts/environment.sh && use_environment requirements.txt"
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, check=True)
    site, source = (
        (" --system-site-packages", " --no-index --find-links wheels") if wheels else ("", "")
    )
    assert (tmp_path / "log").read_text().splitlines() == [
        f"-m venv{site} .venv",
        f"-m pip install --quiet --disable-pip-version-check{source} -r requirements.txt",
    ]
