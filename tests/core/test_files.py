"""Files and folders are whole or as they were, whatever happens to the process that writes them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.errors import UserError
from core.files import append_line, check_place, whole_file, whole_folder, write_text
from core.tensors import open_tensors, write_tensors
from tests.helpers.command_lines import ROOT, small_disk, tree

FILE = """
with whole_file(Path(sys.argv[1])) as partial:
    partial.write_text("new, half of it")
    kill()
"""
FOLDER = """
with whole_folder(Path(sys.argv[1])) as partial:
    (partial / "a.txt").write_text("new, half of it")
    kill()
"""
BETWEEN = """
def rename(a, b, real=os.rename):
    real(a, b)
    kill()
os.rename = rename
with whole_folder(Path(sys.argv[1])) as partial:
    (partial / "a.txt").write_text("new")
"""


def _killed(code: str, path: Path) -> None:
    """Runs the code on `path` in another process, which kills itself with signal 9."""
    head = "import os, sys\nfrom pathlib import Path\nfrom core.files import whole_file, whole_folder\n"
    head += "def kill(): os.kill(os.getpid(), 9)\n"
    done = subprocess.run([sys.executable, "-c", head + code, str(path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_writer_leaves_the_old_file_and_the_next_cleans_up(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    _killed(FILE, path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    write_text(path, "newer")
    assert tree(tmp_path) == {"a.txt": b"newer"}


def test_a_killed_writer_leaves_the_old_folder_and_the_next_cleans_up(tmp_path):
    path = tmp_path / "f[1]"  # a name that is a pattern, too
    path.mkdir()
    (path / "a.txt").write_text("old")
    _killed(FOLDER, path)
    assert (path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    with whole_folder(path) as partial:
        (partial / "b.txt").write_text("newer")
    assert tree(tmp_path) == {"f[1]/b.txt": b"newer"}


def test_a_writer_killed_between_the_two_renames_loses_nothing(tmp_path):
    """The old folder is back as soon as anybody writes there, even if that fails."""
    path = tmp_path / "f"
    path.mkdir()
    (path / "a.txt").write_text("old")
    _killed(BETWEEN, path)
    assert not path.exists()
    with pytest.raises(RuntimeError, match="stop"), whole_folder(path):
        raise RuntimeError("stop")
    assert tree(tmp_path) == {"f/a.txt": b"old"}


def test_leftovers_of_the_living_and_of_others_stay(tmp_path):
    """Of a process that is alive, and of other files; those with odd owners go."""
    kept = (f".a.txt.{os.getppid()}.partial", ".b.txt.99999999.partial", ".a.txt.partial")
    gone = (".a.txt.99999999.partial", f".a.txt.{'9' * 30}.partial", ".a.txt.x.partial")
    for name in (*kept, *gone):
        (tmp_path / name).write_text("left")
    (tmp_path / ".a.txt.99999998.partial").symlink_to(tmp_path)  # is removed, not followed
    write_text(tmp_path / "a.txt", "new")
    assert {file.name for file in tmp_path.iterdir()} == {"a.txt", *kept}


def test_an_error_leaves_the_old_content(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        raise ZeroDivisionError
    assert tree(tmp_path) == {"a.txt": b"old"}


def test_devices_pipes_and_the_other_kind_are_not_replaced(tmp_path):
    pipe, folder, file, loop = (tmp_path / name for name in ("pipe", "folder", "file", "loop"))
    os.mkfifo(pipe)
    folder.mkdir()
    file.write_text("kept")
    loop.symlink_to(loop)
    made = [pipe, loop]
    with suppress(PermissionError):  # /dev/null itself would be lost if this failed
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        made.append(tmp_path / "null")
    for path in (folder, *made):
        before = os.lstat(path)
        with pytest.raises(UserError, match=f"{path} exists and is no file"):
            write_text(path, "x")
        assert os.lstat(path).st_ino == before.st_ino
    for path in (file, *made):
        with pytest.raises(UserError, match="exists and is no folder"), whole_folder(path):
            pytest.fail("must not get here")
    assert file.read_text() == "kept" and len(list(tmp_path.iterdir())) == 2 + len(made)


def test_links_stay_and_what_they_lead_to_is_written(tmp_path):
    for name in ("elsewhere", "here"):
        (tmp_path / name).mkdir()
    target, link = tmp_path / "elsewhere" / "a.txt", tmp_path / "here" / "a.txt"
    target.write_text("old")
    link.symlink_to("../elsewhere/a.txt")
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new" and not target.is_symlink()
    folder, place = tmp_path / "here" / "f", tmp_path / "elsewhere" / "f"
    folder.symlink_to(place)  # leads to nothing yet
    with whole_folder(folder) as partial:
        (partial / "b.txt").write_text("new")
    assert folder.is_symlink() and (place / "b.txt").read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob(".*")) == []


def test_places_that_cannot_be_written_are_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    for path in (file / "a.txt", file / "x" / "a.txt", Path("/proc/nothing/a.txt")):
        with pytest.raises(UserError, match=f"{path} could not be written: "):
            write_text(path, "x")
        with pytest.raises(UserError, match=f"{path} could not be written: "), whole_folder(path):
            pytest.fail("must not get here")
    with pytest.raises(UserError, match="could not be written: File name too long"):
        write_text(tmp_path / ("x" * 254), "x")
    assert tree(tmp_path) == {"file": b"kept"}


def test_a_place_is_tried_and_left_as_it_was(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere/at/all")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for name in ("file", "new", "deep/er/new", "link"):
        check_place(tmp_path / name)
    for name in (".", "new", "deep/er/new"):
        check_place(tmp_path / name, folder=True)
    for name, folder in (
        ("file/x", False), ("file/x/y", True), ("file", True), (".", False), ("pipe", False),
        ("pipe", True), ("loop", False), ("/proc/x/y", False), ("/proc", True), ("/dev/null", False),
        ("x" * 300 + "/y", False),
    ):  # fmt: skip
        with pytest.raises(UserError, match="(could not be written: .|exists and is no )") as found:
            check_place(tmp_path / name, folder)
        assert str(tmp_path / name) in str(found.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"
    with small_disk(tmp_path / "disk") as disk:
        check_place(disk / "a")
        with suppress(OSError), open(disk / "fill", "wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        with pytest.raises(UserError, match=f"{disk}/a could not be written: No space left"):
            check_place(disk / "a")


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    """Written as far as the disk goes, and taken back; what fits is appended to what is there."""
    with small_disk(tmp_path / "disk") as disk:
        file = disk / "a.jsonl"
        with suppress(UserError):
            while True:
                append_line(file, "x" * 3000)
        lines = file.read_bytes().splitlines(keepends=True)
        assert len(lines) > 10 and set(lines) == {b"x" * 3000 + b"\n"}
        with pytest.raises(UserError, match=f"{file} could not be written: No space left"):
            append_line(file, "y" * 5000)
        assert file.read_bytes().splitlines(keepends=True) == lines
        (disk / "link").symlink_to(file)
        append_line(disk / "link", "é")
        assert file.read_text(encoding="utf-8").splitlines()[-1] == "é"
    append_line(tmp_path / "new" / "b", "")
    assert (tmp_path / "new" / "b").read_bytes() == b"\n"
    for name in ("/dev/null", "/dev/full", tmp_path):
        with pytest.raises(UserError, match=f"{name} exists and is no file"):
            append_line(Path(name), "lost")


def test_another_place_in_the_block_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), whole_file(tmp_path / "a") as partial:
        partial.write_text((tmp_path / "nowhere").read_text())


def test_a_full_disk_names_the_file_and_leaves_the_old(tmp_path):
    tensor = {"x": torch.zeros(50_000)}
    with small_disk(tmp_path / "disk") as disk:
        write_text(disk / "a", "old")

        def tensors(partial: Path) -> None:
            save_file(tensor, partial)

        def saved(partial: Path) -> None:
            torch.save(tensor, partial)

        def text(partial: Path) -> None:
            partial.write_text("x" * 200_000)

        for write in (tensors, saved, text):
            with pytest.raises(UserError, match=f"{disk}/a could not be written: "):
                with whole_file(disk / "a") as partial:
                    write(partial)
            with pytest.raises(UserError, match=f"{disk}/f could not be written: "):
                with whole_folder(disk / "f") as partial:
                    write(partial / "inside")
        with pytest.raises(UserError, match="could not be written"):
            write_tensors(disk / "b", tensor)
        assert tree(disk) == {"a": b"old"}


def test_a_file_that_goes_away_as_it_is_read_is_an_os_error(tmp_path, monkeypatch):
    """A training that drops its older checkpoint: torch opens a file that the library found."""
    file, original = tmp_path / "a.safetensors", torch.UntypedStorage.from_file

    def from_file(*args, **keywords):
        file.unlink()
        return original(*args, **keywords)

    save_file({"a": torch.zeros(3)}, file)
    monkeypatch.setattr(torch.UntypedStorage, "from_file", from_file)
    with pytest.raises(OSError, match="No such file"), open_tensors(file) as tensors:
        tensors.get_tensor("a")
    assert not file.exists()
