"""Every method of the registry, from its shipped config shrunken: trained, resumed, sampled and
measured, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import lab
from core.config import parse
from core.runs import Run
from core.training.checkpoints import latest_checkpoint
from core.training.trainer import Trainer
from eval.sweep.config import SweepConfig
from tests.helpers.command_lines import ROOT, run_script
from tests.helpers.laboratory import Laboratory
from tests.helpers.runs import weights
from tests.helpers.stopped import Stopped, save_then_stop
from tests.kill.same import differences

TORCHRUN = (*("-m", "torch.distributed.run", "--standalone"), "--nproc_per_node", "2")


def test_every_method_has_a_config(laboratory):
    assert laboratory.names.keys() == lab.METHODS.keys()


@pytest.mark.parametrize("method", lab.METHODS)
def test_a_method_resumes_after_a_crash_to_the_bit(laboratory, method, monkeypatch):
    """At a checkpoint in the middle; all that is kept is compared, and not only weights."""
    original, saves = Trainer.save, []

    def counting(self) -> None:
        original(self)
        saves.append(self.images)

    laboratory.needs(method)
    monkeypatch.setattr(Trainer, "save", counting)
    whole, run = laboratory.made(method), laboratory.folder / f"crashed-{method}"
    monkeypatch.setattr(Trainer, "save", original)
    arguments = ("train", laboratory.file(method), f"run={run}", "--cpu")
    monkeypatch.setattr(Trainer, "save", save_then_stop(max(1, len(saves) // 2)))
    with pytest.raises(Stopped):
        run_script(*arguments)
    monkeypatch.setattr(Trainer, "save", original)
    assert run_script(*arguments)[0] == 0
    assert differences(whole, run, {"run", "config_sha256"}) == []


@pytest.mark.parametrize("method", lab.METHODS)
def test_a_method_is_sampled_as_it_is_meant_to_be_and_measured(laboratory, method):
    setting = lab.load(laboratory.made(method)).spec.setting
    run: Run = lab.load(laboratory.made(method), steps=setting.steps)
    images = lab.sample(run, n=20)
    spec = run.spec
    assert images.shape == (20, spec.channels, spec.side, spec.side)
    assert images.dtype == torch.uint8 and images.float().std() > 0
    values = {
        "out": str(laboratory.folder / "curves.jsonl"),
        "extractor": "digits-cnn",
        "n": 20,
        "bootstrap": 2,
        "floor": False,
        "cache": laboratory.cache,
        "device": "cpu",
        "entries": [{"run": str(run.folder)}],
    }
    (row,) = lab.measure(parse(SweepConfig, values, "test"))
    assert (row.method, row.setting.steps) == (method, setting.steps)
    assert np.isfinite(row.fid) and row.fid > 0
    assert row.nfe >= 1 and row.train_images == run.train_images


def trained(file: Path, run: Path, processes: int = 1, stop: int | None = None, more=()) -> Path:
    """Trains in this process, or in two of their own; stop: the number of the checkpoint that it
    ends at."""
    arguments = (str(file), f"run={run}", *more, "--cpu")
    if processes == 1:
        with pytest.MonkeyPatch.context() as patch:
            if stop:
                patch.setattr(Trainer, "save", save_then_stop(stop))
            with pytest.raises(Stopped) if stop else nullcontext():
                code, errors = run_script("train", *arguments)
                assert code == 0, errors
        return run
    module = ("tests.helpers.stopped", str(stop)) if stop else ("scripts.train",)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *TORCHRUN, "-m", *module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return run


def price(run: Path) -> dict:
    return json.loads((latest_checkpoint(run) / "price.json").read_text())


def assert_equal_to_rounding(one: Path, two: Path, start: Path) -> None:
    """Of all networks that the newest checkpoints hold; where rounding is small beside the way
    that each tensor has come."""
    files = sorted(latest_checkpoint(one).glob("*.safetensors"))
    assert [f.name for f in files] == sorted(
        f.name for f in latest_checkpoint(two).glob("*.safetensors")
    )
    for which in (file.stem for file in files):
        first, second, begun = (weights(run, which) for run in (one, two, start))
        for name, tensor in first.items():
            moved = (tensor - begun[name]).abs().max()
            gap = (tensor - second[name]).abs().max()
            assert gap <= 1e-3 * moved + 1e-6, f"{which} {name}: {gap:.2g} of {moved:.2g}"


def check_two_processes(laboratory: Laboratory, method: str) -> None:
    laboratory.needs(method)
    file, folder = laboratory.file(method), laboratory.folder / f"two-{method}"
    folder.mkdir()
    one = trained(file, folder / "one")
    two = trained(file, folder / "two", 2)
    assert (price(one)["processes"], price(two)["processes"]) == (1, 2)
    assert price(one)["evals"] == pytest.approx(price(two)["evals"])
    start = trained(file, folder / "start", stop=1, more=["log.checkpoint_every=1"])
    assert_equal_to_rounding(one, two, start)
    for name, first, second in (("down", 2, 1), ("up", 1, 2)):
        run = trained(file, folder / name, first, stop=1)
        begun = price(run)["images"]
        trained(file, run, second)
        assert begun < price(run)["images"] == price(one)["images"]
        assert_equal_to_rounding(one, run, start)


def test_two_processes_equal_one_for_several_roles(laboratory):
    """The method whose loss plays networks against each other."""

    def plays(method: str) -> bool:
        return any(role.penalised for role in laboratory.built(method).roles.values())

    check_two_processes(laboratory, next(m for m in lab.METHODS if plays(m)))


def test_two_processes_equal_one_for_a_second_time(laboratory):
    """The method whose loss takes derivatives on the bare network."""
    found = (m for m in lab.METHODS if laboratory.built(m).student.spec.network.second_time)
    check_two_processes(laboratory, next(found))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", lab.METHODS)
def test_two_processes_equal_one(laboratory, method):
    if not laboratory.learns(method):
        pytest.skip("solved in closed form")
    check_two_processes(laboratory, method)
