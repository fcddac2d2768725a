"""The trainer: resume to the bit after a kill, one process equal to two, accumulation, budgets, the
NaN guard, offline wandb."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from core.errors import UserError
from core.noise import Noise
from core.pictures import save_png, tile
from core.sampling.sample import sample_images
from core.setting import Setting
from core.training.checkpoints import latest_checkpoint
from core.training.trainer import TrainingDiverged
from lab import load
from tests.helpers.command_lines import wait_for
from tests.helpers.runs import assert_same_bits, images_of, weights
from tests.helpers.tiny import tiny_config, train_tiny

ROOT = Path(__file__).resolve().parents[3]


def write_config(folder: Path, values: dict) -> Path:
    file = folder / f"{Path(values['run']).name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def command(file: Path, *launcher: str) -> list[str]:
    return [sys.executable, *(launcher or ("-m",)), "scripts.train", str(file), "--cpu"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def assert_joined(run: Path, processes: int) -> None:
    """The run really was trained by that many processes."""
    assert json.loads((latest_checkpoint(run) / "price.json").read_text())["processes"] == processes


def metrics(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows
    ]


def test_resume_after_kill_is_equal_to_the_bit(tmp_path):
    """kill -9 in the middle, with dropout, label dropout, warm-up and decay: weights, average and
    log come out the same."""
    options = dict(
        images=6400,
        network={"dropout": 0.2},
        method={"label_dropout": 0.2},
        optimizer={"warmup": 640, "decay": "cosine"},
    )
    train_tiny(tmp_path / "whole", **options)

    file = write_config(tmp_path, tiny_config(tmp_path / "killed", **options))
    process = subprocess.Popen(
        command(file), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
    )
    wait_for(lambda: latest_checkpoint(tmp_path / "killed"), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    interrupted = latest_checkpoint(tmp_path / "killed")
    assert interrupted is not None and images_of(interrupted) < 6400, (
        "the kill came too late to test anything"
    )
    subprocess.run(command(file), cwd=ROOT, env=environment(), check=True, capture_output=True)

    assert images_of(latest_checkpoint(tmp_path / "killed")) == 6400
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


@pytest.mark.parametrize(
    ("name", "prediction"), [("progressive", "v"), ("consistency", "v"), ("consistency", "eps")]
)
def test_students_resume_within_a_stage_to_the_bit(tmp_path, name, prediction):
    """The networks that are not trained by the optimiser (a stage's teacher, a target average) are
    part of the checkpoint."""
    train_tiny(tmp_path / "teacher", images=320, prediction=prediction, path="vp-linear")
    extra = {
        "progressive": {"start_steps": 4},
        "consistency": {"steps_start": 4, "steps_end": 16, "target_half_life": 200.0},
    }
    options = dict(method={"teacher": str(tmp_path / "teacher"), **extra[name]}, images=1600)
    train_tiny(tmp_path / "whole", name, **options)
    # stop at a checkpoint in mid-stage by an exception, as a crash would
    import core.training.trainer

    original = core.training.trainer.Trainer.save

    def crash(self):
        original(self)
        if self.images >= 640:
            raise RuntimeError("crash")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.training.trainer.Trainer, "save", crash)
        with pytest.raises(RuntimeError, match="crash"):
            train_tiny(tmp_path / "crashed", name, **options)
    assert 0 < images_of(latest_checkpoint(tmp_path / "crashed")) < 1600
    train_tiny(tmp_path / "crashed", name, **options)
    assert_same_bits(tmp_path / "whole", tmp_path / "crashed")
    kept = [p.name for p in sorted((tmp_path / "crashed" / "for-steps").glob("*"))]
    assert kept == (["0001", "0002", "0004"] if name == "progressive" else [])


def test_a_stage_is_previewed_in_its_own_number_of_steps(tmp_path):
    """The last picture of a student made for one step is what it gives in one, not in the
    `log.steps` of everybody else."""
    train_tiny(tmp_path / "teacher", images=640)
    method = {"teacher": str(tmp_path / "teacher"), "start_steps": 2}
    train_tiny(tmp_path / "student", "progressive", images=640, method=method, log={"steps": 2})
    picture = np.asarray(
        Image.open(max((tmp_path / "student" / "samples").glob("*.png"))).convert("L")
    )
    for steps, same in ((1, True), (2, False)):
        setting = Setting(sampler="ddim", steps=steps)
        model = load(tmp_path / "student", steps=1).model
        images = sample_images(model, setting, torch.arange(10))
        save_png(tile(images, columns=10), tmp_path / "expected.png", scale=8)
        assert (
            np.array_equal(picture, np.asarray(Image.open(tmp_path / "expected.png").convert("L")))
            == same
        )


def test_two_processes_equal_one_at_the_same_global_batch(tmp_path):
    """accelerate launch with two gloo processes: weights and average agree with one process to
    rounding."""
    train_tiny(tmp_path / "one", images=1280, method={"label_dropout": 0.2})
    file = write_config(
        tmp_path, tiny_config(tmp_path / "two", images=1280, method={"label_dropout": 0.2})
    )
    # --multi_gpu is how accelerate's launcher spells torchrun; with --cpu it would start one
    # process, and say nothing.
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launcher += [
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        str(free_port()),
        "-m",
    ]
    done = subprocess.run(
        command(file, *launcher), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert_joined(tmp_path / "two", 2)
    start = weights_at_start(tmp_path)
    for which in ("raw", "ema"):
        one, two = weights(tmp_path / "one", which), weights(tmp_path / "two", which)
        for name in one:
            moved = (one[name] - start[name]).abs().max()
            assert (one[name] - two[name]).abs().max() < 1e-3 * moved + 1e-6, f"{which} {name}"
    prices = [
        json.loads((latest_checkpoint(tmp_path / n) / "price.json").read_text())
        for n in ("one", "two")
    ]
    assert prices[0]["evals"] == prices[1]["evals"] == 1280 * 3


def weights_at_start(tmp_path: Path) -> dict[str, torch.Tensor]:
    train_tiny(tmp_path / "start", images=1, optimizer={"lr": 0.0})
    return weights(tmp_path / "start", "raw")


def test_accumulation_changes_nothing_but_rounding(tmp_path):
    """Dropout included: its masks belong to samples."""
    network = {"dropout": 0.3}
    train_tiny(tmp_path / "one", images=640, network=network)
    train_tiny(tmp_path / "four", images=640, network=network, train={"accumulate": 4})
    start = weights_at_start(tmp_path)
    one, four = weights(tmp_path / "one", "raw"), weights(tmp_path / "four", "raw")
    for name in one:
        assert (one[name] - four[name]).abs().max() < 1e-3 * (
            one[name] - start[name]
        ).abs().max() + 1e-6, name


def test_average_is_the_recurrence_of_the_weights(tmp_path):
    """The EMA in the checkpoint against the recurrence written out over the recorded weights of
    every step."""
    import core.training.trainer

    seen: list[dict[str, torch.Tensor]] = []

    def now(trainer) -> dict[str, torch.Tensor]:
        state = trainer.method.student.network.state_dict()
        return {name: value.clone() for name, value in state.items()}

    original = core.training.trainer.Trainer._step

    def record(self):
        if not seen:
            seen.append(now(self))
        result = original(self)
        seen.append(now(self))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.training.trainer.Trainer, "_step", record)
        train_tiny(tmp_path / "run", images=640)
    average = weights(tmp_path / "run", "ema")
    beta = 0.5 ** (64 / 320)
    for name in average:
        expected = seen[1][
            name
        ].double()  # ema-pytorch starts from the weights after the first step
        for step, value in enumerate(seen[2:], start=1):
            decay = min(1 - (1 + step) ** (-2 / 3), beta)
            expected = decay * expected + (1 - decay) * value[name].double()
        assert torch.allclose(average[name].double(), expected, atol=1e-5), name


def test_budget_in_network_evaluations_counts_every_network(tmp_path):
    """Consistency distillation with Heun: student forward and backward 3, teacher 2, stop-gradient
    target 1 = 6 an image, and 4 where the step ends on clean data: there Heun is Euler and the
    target is the image itself."""
    train_tiny(tmp_path / "teacher", images=320)
    options = dict(
        method={"teacher": str(tmp_path / "teacher"), "steps_start": 16, "steps_end": 16}
    )
    values = {"budget": {"images": None, "evals": 6 * 640.0}}
    train_tiny(tmp_path / "student", "consistency", **options, **values)
    price = json.loads((latest_checkpoint(tmp_path / "student") / "price.json").read_text())
    n = Noise(0, torch.arange(price["images"])).integers(16, "time")
    assert price["evals"] == 6 * len(n) - 2 * int((n == 15).sum())
    assert 640 < price["images"] < 720 and 6 * 640 <= price["evals"]
    assert price["teacher"] == "teacher"


def test_nan_stops_with_the_batch_on_disk(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"NaN or infinite at \d+ images.*the batch is in"):
        train_tiny(tmp_path / "run", images=6400, optimizer={"lr": 1e30, "clip": 0.0})
    (file,) = (tmp_path / "run").glob("diverged-*.pt")
    batch = torch.load(file, weights_only=True)
    assert batch["x0"].shape == (64, 1, 8, 8) and len(batch["t"]) == 64


def wandb_records(file: Path):
    """The protobuf records of an offline run's file: LevelDB's log format behind a header of 7
    bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, body, block = file.read_bytes(), 7, b"", 32768
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if (
            block - position % block < 7
        ):  # too little room for a record's head: the rest of the block is padding
            position += block - position % block
            continue
        length, kind = (
            int.from_bytes(data[position + 4 : position + 6], "little"),
            data[position + 6],
        )
        body += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            yield record
            body = b""


def test_wandb_offline_run_leaves_its_history(tmp_path):
    file = write_config(
        tmp_path, tiny_config(tmp_path / "run", images=640, log={"wandb": "offline"})
    )
    done = subprocess.run(
        command(file), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    history = [r.history for r in wandb_records(file) if r.WhichOneof("record_type") == "history"]
    losses = [
        json.loads(i.value_json)
        for h in history
        for i in h.item
        if "loss" in (i.key, *i.nested_key)
    ]
    assert losses == [row["loss"] for row in metrics(tmp_path / "run")]
    assert len(losses) == 2


def test_a_run_may_be_moved_and_logged_otherwise(tmp_path):
    """Its own name and what is logged are not part of what it was trained as; any other key is."""
    train_tiny(tmp_path / "here", images=64)
    (tmp_path / "here").rename(tmp_path / "there")
    before = sorted((tmp_path / "there" / "checkpoints").iterdir())
    train_tiny(tmp_path / "there", images=64, log={"checkpoint_every": 64, "sampler": "heun"})
    assert sorted((tmp_path / "there" / "checkpoints").iterdir()) == before
    with pytest.raises(
        UserError,
        match="there was trained with another config: budget.images is 64 there and 128 here",
    ):
        train_tiny(tmp_path / "there", images=128)
