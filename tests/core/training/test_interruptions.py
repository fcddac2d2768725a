"""What happens to a run: signals, two commands at a time, launchers that are killed, files that
change, readers while it trains."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from core.errors import UserError
from core.training.checkpoints import latest_checkpoint, read_newest
from eval.report.training import _config_sha256, loss_by_level
from eval.report.training import prices as report_prices
from lab import load
from scripts.ablate_plan import prices as study_prices
from scripts.planner import _is_weights_alone
from tests.helpers.command_lines import PATIENCE, ROOT, wait_for
from tests.helpers.rows import row
from tests.helpers.runs import assert_same_bits, images_of
from tests.helpers.tiny import metrics_of, tiny_config, train_tiny

TIMES = ("seconds", "images_per_second")


def start(folder: Path, launcher: tuple[str, ...] = ("-m",), **options) -> subprocess.Popen:
    import sys

    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(tiny_config(folder, **options)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, "scripts.train", str(file), "--cpu"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lines(run: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in metrics_of(run)]


LOG = {"metrics_every": 256, "checkpoint_every": 640}  # no multiple of each other


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on_to_the_bit(tmp_path, number):
    """Also the lines of metrics.jsonl are those of a run left alone."""
    run = tmp_path / "stopped"
    process = start(run, images=64_000, log=LOG)
    wait_for(lambda: (run / "metrics.jsonl").is_file())
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "goes on" in errors.splitlines()[-1] and "Traceback" not in errors
    stopped = images_of(latest_checkpoint(run))
    assert 0 < stopped < 64_000

    budget = stopped + 640
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("images: 64000", f"images: {budget}")
    )
    train_tiny(run, images=budget, log=LOG)
    train_tiny(tmp_path / "whole", images=budget, log=LOG)
    assert_same_bits(tmp_path / "whole", run)
    assert lines(tmp_path / "whole") == lines(run)


def test_two_commands_for_one_run(tmp_path):
    run = tmp_path / "run"
    first = start(run, images=64_000)
    wait_for(lambda: (run / "metrics.jsonl").is_file())
    with pytest.raises(UserError, match="another training is at work"):
        train_tiny(run, images=64_000)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=PATIENCE)
    counts = [line["images"] for line in metrics_of(run)]
    assert counts == sorted(set(counts))


def test_ranks_end_with_a_launcher_that_is_killed(tmp_path):
    run = tmp_path / "run"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    process = start(run, launcher, images=6_400_000)
    wait_for(lambda: (run / "metrics.jsonl").is_file())
    process.kill()
    process.communicate(timeout=PATIENCE)
    group = process.pid  # it began a session of its own

    def nobody() -> bool:
        found = subprocess.run(["pgrep", "-g", str(group)], capture_output=True, text=True).stdout
        return not found.strip()

    wait_for(nobody)


def test_a_folder_with_leftovers_of_a_start_is_no_obstacle(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.123.partial").write_text("run: half")
    (tmp_path / "run" / ".DS_Store").write_text("")
    train_tiny(tmp_path / "run", images=64)
    assert load(tmp_path / "run").train_images == 64


def test_strangers_in_the_checkpoints_folder_stay(tmp_path, monkeypatch):
    """A file of the operating system's and a folder of the user's, there between two saves."""
    from core.training.trainer import Trainer

    original, folder = Trainer.save, tmp_path / "run" / "checkpoints"

    def save(self) -> None:
        original(self)
        (folder / "my-notes").mkdir(exist_ok=True)
        (folder / "my-notes" / "x").write_text("mine")
        (folder / ".DS_Store").write_text("")

    monkeypatch.setattr(Trainer, "save", save)
    train_tiny(tmp_path / "run", images=192, log={"checkpoint_every": 64})
    left = sorted(path.name for path in folder.iterdir())
    assert left == [".DS_Store", "000000000192-01", "my-notes"]
    assert (folder / "my-notes" / "x").read_text() == "mine"


def flip_a_bit(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["raw.safetensors", "ema.safetensors", "state.pt"])
@pytest.mark.parametrize("at", [0.5, 0.9])
def test_a_flipped_bit_is_found(tmp_path, name, at):
    train_tiny(tmp_path / "run", images=64)
    flip_a_bit(latest_checkpoint(tmp_path / "run") / name, at)
    with pytest.raises(UserError, match=f"{name} (was changed|is damaged)"):
        train_tiny(tmp_path / "run", images=64)
    if name.startswith("ema"):
        with pytest.raises(UserError, match="was changed since it was written"):
            load(tmp_path / "run")


def test_a_run_does_not_go_on_with_another_teacher(tmp_path):
    for seed in (0, 1):
        train_tiny(tmp_path / f"teacher{seed}", images=64, train={"seed": seed})
    (tmp_path / "teacher").symlink_to("teacher0")
    options = dict(method={"teacher": str(tmp_path / "teacher"), "start_steps": 2}, images=640)
    train_tiny(tmp_path / "student", "progressive", **options)
    train_tiny(tmp_path / "student", "progressive", **options)  # the same: nothing to do
    (tmp_path / "teacher").unlink()
    (tmp_path / "teacher").symlink_to("teacher1")
    with pytest.raises(UserError, match="was begun with another teacher"):
        train_tiny(tmp_path / "student", "progressive", **options)


def teachers_price(run: Path) -> dict:
    """As the report of a student tells it."""
    student = row("student", 1, 1.0, teacher=run.name, train_evals=1.0)
    return next(one for one in report_prices([student], run.parent) if one["run"] == run.name)


def there(found: object) -> None:
    assert found


READERS = {
    "its weights and their hash": lambda run: there(load(run).weights_sha256),
    "its price in a report": lambda run: there(teachers_price(run)["train_images"]),
    "the config that is measured": lambda run: there(_config_sha256(run.parent, run.name)),
    "its losses": lambda run: there(loss_by_level(run)["images"]),
    "its price in the plan of a study": lambda run: there(study_prices(run.parent)["ddpm"]),
    "whether it goes on": lambda run: there(not _is_weights_alone(run)),
}


def test_a_run_that_trains_can_be_read_at_any_moment(tmp_path):
    run = tmp_path / "run"
    process = start(run, images=640_000, log={"checkpoint_every": 64, "metrics_every": 64})
    wait_for(lambda: latest_checkpoint(run) is not None and (run / "metrics.jsonl").is_file())
    counts, end, rounds = Counter(), time.monotonic() + 4, 0
    try:
        while (time.monotonic() < end or rounds < 10) and process.poll() is None:
            rounds += 1
            for what, read in READERS.items():
                for _ in range(1 if "weights" in what else 10):
                    read(run)
                    counts[what] += 1
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)
    assert counts.keys() == READERS.keys() and min(counts.values()) >= 10, counts


def test_a_reader_begins_again_where_its_checkpoint_was_replaced(tmp_path):
    """Between its listing and its reading, as often as it takes; what is really damaged is said."""
    folder = tmp_path / "checkpoints"

    def replaced(by: int) -> None:
        (folder / f"{by:012d}-00").mkdir(parents=True)
        for old in folder.glob(f"{by - 1:012d}-00"):
            old.rmdir()

    def read(checkpoint: Path) -> str:
        number = images_of(checkpoint)
        if number < 5:
            replaced(number + 1)
            raise FileNotFoundError(checkpoint)
        return checkpoint.name

    assert read_newest(tmp_path, read) is None
    replaced(1)
    assert read_newest(tmp_path, read) == "000000000005-00"
    with pytest.raises(UserError, match="damaged"):
        read_newest(tmp_path, lambda checkpoint: refuse(f"{checkpoint} is damaged"))


def refuse(words: str) -> None:
    raise UserError(words)


def test_a_checkpoint_that_cannot_be_removed_ends_no_training(tmp_path, monkeypatch, capsys):
    """As a file that is read on a network's disk; it goes with the next one."""
    original, seen = shutil.rmtree, []

    def rmtree(path, **options) -> None:
        if Path(path).name == "000000000064-00" and len(seen) < 2:
            seen.append(path)
            raise OSError(39, "Directory not empty", str(path))
        original(path, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    train_tiny(tmp_path / "run", images=320, log={"checkpoint_every": 64})
    said = [line for line in capsys.readouterr().err.splitlines() if "stays for now" in line]
    assert len(said) == 2 and "000000000064-00" in said[0] and "Directory not empty" in said[0]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [
        "000000000320-01"
    ]


def test_the_last_picture_is_made_after_a_kill_behind_the_last_checkpoint(tmp_path):
    train_tiny(tmp_path / "run", images=64)
    (picture,) = (tmp_path / "run" / "samples").glob("*.png")
    before = picture.read_bytes()
    picture.unlink()
    train_tiny(tmp_path / "run", images=64)
    assert picture.read_bytes() == before


def test_what_a_kill_left_of_an_older_checkpoint_goes(tmp_path):
    """A kill may come as the older one is being removed, behind the last checkpoint of a run."""
    train_tiny(tmp_path / "run", images=64)
    half = tmp_path / "run" / "checkpoints" / "000000000000-00"
    half.mkdir()
    (half / "state.pt").write_text("half")
    train_tiny(tmp_path / "run", images=64)
    assert [path.name for path in half.parent.iterdir()] == ["000000000064-01"]
