"""What the machine does to a command line: full disks, places that cannot be written, no memory,
readers that go away, terminals that know no ±. One line, and what was there stays."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from core.data.pairs import PairSource
from core.errors import UserError, command_line, nearest, one_line
from tests.fuzz.mistakes import limits
from tests.helpers.command_lines import (
    ROOT,
    enlarge_disk,
    refused,
    run_process,
    run_script,
    small_disk,
    tree,
)
from tests.helpers.study import run_here, write_study
from tests.helpers.tiny import tiny_config, train_tiny

DIGITS = ROOT / "results" / "digits" / "curves.jsonl"
COMPARE = ("compare", DIGITS, "--a", "progressive", "--b", "consistency")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train_tiny(folder, images=64)
    return folder


@pytest.fixture
def commands(run, tmp_path):
    """Command lines that write to a place."""
    config, pairs = tmp_path / "c.yaml", tmp_path / "p.yaml"
    config.write_text(yaml.safe_dump(tiny_config("unused", images=64)))
    pairs.write_text(yaml.safe_dump({"run": str(run), "out": "unused", "count": 64, "steps": 1}))
    study = write_study(tmp_path / "of_study", images=64)
    sample = ("sample", run, "--steps", "1", "--count", "2")
    measure = ("evaluate", "--run", run, "--steps", "1", "--n", "8", "--extractor", "digits-cnn")
    return lambda place: {
        "sample": (*sample, "--out", place / "x.png"),
        "sample into a folder": (*sample, "--folder", place / "x"),
        "sample a film": (*sample, "--trajectory", place / "x.png"),
        "train": ("train", config, f"run={place / 'x'}", "--cpu"),
        "evaluate": (*measure, "--out", place / "x.jsonl", f"cache={tmp_path / 'cache'}"),
        "plot": ("plot", DIGITS, "--out", place / "x", "--markdown", place / "x.md"),
        "report": ("report", DIGITS, "--out", place / "x.html", "--images", "0"),
        "pairs": ("pairs", pairs, f"out={place / 'x'}", "sampler=ddim", "shard=16"),
        "ablate": ("tests.kill.study", study, place / "x"),
        "ablate elsewhere": ("ablate", study, f"out={place / 'x'}"),
        "trajectories": ("trajectories", DIGITS.parent, "--out", place / "x.png"),
        "publish": ("publish", run.parent, place / "x"),
        "fetch": ("fetch_inception", "--out", place / "x.pth", "--from", config),
        "export": ("teacher", "export", run, place / "x"),
    }


KINDS = ("sample", "sample into a folder", "sample a film", "train", "evaluate", "plot", "report",
         "pairs", "ablate", "ablate elsewhere", "trajectories", "publish", "fetch", "export")  # fmt: skip
# What is worked out before anything is written
WORK = {
    "sample": "core.sampling.sample.sample",
    "sample into a folder": "core.sampling.sample.sample",
    "sample a film": "core.sampling.sample.sample",
    "train": "core.training.trainer.Trainer._step",
    "evaluate": "eval.sweep.points.PointSampler._batch",
    "plot": "eval.curves.plots.plot_all",
    "report": "eval.report.document.render",
    "pairs": "core.pairs.sample",
    "ablate": "core.training.trainer.Trainer._step",
    "ablate elsewhere": "core.training.trainer.Trainer._step",
    "trajectories": "eval.report.paths._chosen",
}


def _last_line(code: int, errors: str) -> str:
    assert code == 2 and "Traceback" not in errors, errors
    last = re.split(r"[\r\n]", errors.removesuffix("\n"))[-1]
    assert last.startswith("error: ") and errors.count("error: ") <= 2, errors
    return last


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("below", ["a file", "/proc"])
def test_places_that_cannot_be_written(kind, below, commands, tmp_path, run, monkeypatch):
    """They are tried before the work."""

    def worked(*_, **__):
        raise AssertionError("the work was begun")

    if kind in WORK:
        monkeypatch.setattr(WORK[kind], worked)
    (tmp_path / "file").write_text("kept")
    place = tmp_path / "file" if below == "a file" else Path("/proc/nothing")
    if kind == "publish":
        (run.parent / "curves.jsonl").write_bytes(DIGITS.read_bytes())
    line = _last_line(*run_script(*commands(place)[kind]))
    assert str(place) in line or kind == "fetch"
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("kind", ["sample", "train", "evaluate", "plot", "report"])
def test_a_full_disk(kind, commands, tmp_path):
    """In a process of its own, as the kernel's errors come at the end of writing, too."""
    with small_disk(tmp_path / "disk") as disk:
        with suppress(OSError), open(disk / "fill", "wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        done = run_process(*commands(disk)[kind], encoding="utf-8")
        line = _last_line(done.returncode, done.stderr)
        assert "No space left on device" in line or "could not be written" in line
        assert not [file for file in disk.rglob("*.partial")]


def test_pairs_on_a_disk_that_fills_go_on_when_there_is_room(commands, tmp_path):
    """What was written before is whole, and the end is that of a disk with room."""
    options = ("count=512", "shard=32", "steps=2")
    assert run_script(*commands(tmp_path)["pairs"], *options)[0] == 0
    with small_disk(tmp_path / "disk") as disk:
        command = (*commands(disk)["pairs"], *options)
        line = _last_line(*run_script(*command))
        assert "safetensors could not be written: " in line and "No space left on device" in line
        assert not list(disk.rglob("*.partial"))
        with pytest.raises(UserError, match=r"[1-9]\d* of 16 shards are there"):
            PairSource(disk / "x", 0)
        enlarge_disk(disk, "4m")
        code, errors = run_script(*command)
        assert code == 0 and "made again" not in errors, errors
        found, whole = tree(disk / "x"), tree(tmp_path / "x")
        manifests = [json.loads(files.pop("pairs.json")) for files in (found, whole)]
        assert found == whole and len(found) == 16
        assert len({json.dumps(one | {"seconds": 0}) for one in manifests}) == 1


def test_a_study_on_a_disk_that_fills_goes_on_when_there_is_room(tmp_path, monkeypatch):
    """The table says which trainings have failed and why; those that are done stay."""
    study = write_study(tmp_path / "of_study", images=64)
    with small_disk(tmp_path / "disk", "400k") as disk:
        monkeypatch.setenv("RUNS", str(disk / "runs"))
        failed = run_here(study)
        assert failed.count("could not be written: ") == 1, failed
        assert "No space left on device" in failed and not list(disk.rglob("*.partial"))
        (done,) = disk.glob("runs/ablations/ddpm-*/curves.jsonl")
        before = tree(done.parent)
        enlarge_disk(disk, "8m")
        assert "could not be written" not in run_here(study)
        assert len(list(disk.glob("runs/ablations/ddpm-*/curves.jsonl"))) == 2
        assert tree(done.parent) == before


def test_memory_that_does_not_suffice(run, tmp_path):
    done = run_process(
        "sample", run, "--steps", "1", "--count", str(10**14), "--out", tmp_path / "x.png",
        encoding="utf-8",
    )  # fmt: skip
    assert "out of memory (" in _last_line(done.returncode, done.stderr)


def test_pairs_that_do_not_fit_into_memory(commands, tmp_path):
    options = ("count=2000000", "shard=1000000", "batch_size=1000000")
    with limits(500 * 10**6):
        line = _last_line(*run_script(*commands(tmp_path)["pairs"], *options))
    assert "out of memory (" in line
    assert not list((tmp_path / "x").iterdir())


def test_a_training_of_a_study_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    """One cell fails, the table says why, and the others are there."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    study = write_study(tmp_path, images=64, axes={"train.batch_size": [64, 200_000]})
    with limits(300 * 10**6):
        table = run_here(study)
    assert table.count("out of memory (") == 1 and "| 64 |" in table, table
    assert len(list(tmp_path.glob("runs/ablations/ddpm-*/curves.jsonl"))) == 1


def test_a_reader_that_goes_away():
    for arguments, code in ((COMPARE, 141), (("compare", "--help"), 0)):  # argparse lets it pass
        read, write = os.pipe()
        os.close(read)
        done = run_process(*arguments, stdout=write)
        os.close(write)
        assert (done.returncode, done.stderr) == (code, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_stdout():
    with open("/dev/full", "wb") as full:
        done = run_process(*COMPARE, stdout=full, encoding="utf-8")
    assert _last_line(done.returncode, done.stderr) == "error: No space left on device"


LOCALES = (
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
)


@pytest.mark.parametrize("environment", LOCALES)
def test_letters_that_a_terminal_does_not_have(environment):
    program = (
        "from core.errors import command_line; command_line(lambda: print('5 \\u00b1 \\u221e'))()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ | environment, capture_output=True
    )
    mark = b"\xb1" if "latin-1" in environment.values() else b"?"
    assert (done.returncode, done.stdout) == (0, b"5 " + mark + b" ?\n")


def test_files_are_the_same_in_a_locale_that_is_not_utf8(tmp_path):
    rows = b"".join(DIGITS.read_bytes().splitlines(keepends=True)[:4])
    printed = {}
    for name, environment in (("utf8", {"PYTHONUTF8": "1"}), ("other", LOCALES[0] | LOCALES[1])):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "curves.jsonl").write_bytes(rows)
        for script, *arguments in (
            ("plot", folder / "curves.jsonl", "--markdown", folder / "table.md"),
            COMPARE,
        ):
            done = run_process(script, *arguments, environment=environment)
            assert done.returncode == 0, done.stderr
            printed[name, script] = done.stdout
    assert tree(tmp_path / "other") == tree(tmp_path / "utf8")
    assert printed["other", "compare"] == printed["utf8", "compare"]
    assert "±" in (tmp_path / "other" / "table.md").read_text(encoding="utf-8")


def test_names_with_odd_characters_take_one_line(tmp_path):
    for name in ("a\nb", "a\rb", "a\x1b[31mb", "a\u2028b", os.fsdecode(b"a\xffb")):
        line = refused(tmp_path, "sample", tmp_path / name, "--steps", "1", "--out", "x.png")
        assert line.isprintable() and "is not a run" in line
        refused(tmp_path, "train", tmp_path / name)
        refused(tmp_path, "train", "configs/digits/teacher.yaml", f"{name}=1")
    assert one_line("a\nb\té\0") == "a\\nb\\té\\x00"
    assert str(UserError("'x\n'" + nearest("x", ["y\n"]))) == "'x\\n' (known: y\\n)"


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        ("MemoryError()", 2, "error: out of memory (MemoryError)"),
        ("torch.OutOfMemoryError('CUDA out of memory.\\nTried')", 2, "error: out of memory (CUDA"),
        ("RuntimeError('DefaultCPUAllocator: not enough memory: x')", 2, "error: out of memory ("),
        ("PermissionError(13, 'x', '/a\\nb')", 2, "error: /a\\nb: Permission denied"),
        ("OSError(28, 'x', 'a', None, 'b')", 2, "error: a and b: No space left on device"),
        ("OSError('odd')", 2, "error: odd"),
        ("SystemExit(7)", 7, ""),
        ("SystemExit('words')", 1, "words"),
        ("KeyboardInterrupt()", 130, "interrupted"),
        ("RuntimeError('a bug')", 1, "Traceback"),
        ("ValueError('a bug')", 1, "Traceback"),
    ],
)
def test_only_what_is_no_bug_becomes_a_line(raised, code, says):
    assert callable(command_line)
    program = f"import torch\nfrom core.errors import command_line\n@command_line\ndef main(): raise {raised}\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == code and done.stderr.startswith(says), done.stderr
    assert says == "Traceback" or done.stderr.count("\n") <= 1
