"""Two processes beside one: budgets in evaluations end together, and pairs are shared out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from core.pairs import generate_pairs
from core.training.checkpoints import latest_checkpoint
from lab import load
from tests.helpers.command_lines import ROOT
from tests.helpers.runs import weights
from tests.helpers.tiny import tiny_config, train_tiny

TORCHRUN = (*("-m", "torch.distributed.run", "--standalone"), "--nproc_per_node", "2", "-m")


def in_two(module: str, file: Path, *more: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *TORCHRUN, module, str(file), *more],
        cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def price(run: Path) -> dict:
    return json.loads((latest_checkpoint(run) / "price.json").read_text())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "teacher"
    train_tiny(folder, images=64, method={"label_dropout": 0.1})
    return folder


def test_a_budget_in_evaluations_ends_in_both_at_once(tmp_path, teacher):
    """Heun's second evaluation is left out where a step ends on clean data, in half of the samples
    here, and not the same number of them in both processes: evaluations have to be summed over
    processes, or one waits for the other for ever."""
    sections = {"budget": {"images": None, "evals": 2010.0}, "train": {"batch_size": 4}}
    method = {"teacher": str(teacher), "steps_start": 2, "steps_end": 2}
    train_tiny(tmp_path / "one", "consistency", method=method, **sections)
    values = tiny_config(tmp_path / "two", "consistency", method=method, **sections)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(values))
    in_two("scripts.train", tmp_path / "two.yaml", "--cpu")
    one, two = price(tmp_path / "one"), price(tmp_path / "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["evals"] == two["evals"] >= 2010
    assert one["images"] == two["images"]


def test_dropout_draws_the_masks_of_one_process(tmp_path):
    options = {"images": 320, "network": {"dropout": 0.3}}
    one = train_tiny(tmp_path / "one", **options)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(tiny_config(tmp_path / "two", **options)))
    in_two("scripts.train", tmp_path / "two.yaml", "--cpu")
    train_tiny(tmp_path / "start", images=1, optimizer={"lr": 0.0}, network={"dropout": 0.3})
    assert one.method.student.spec.network.dropout == 0.3
    for which in ("raw", "ema"):
        start, alone, both = (weights(tmp_path / n, which) for n in ("start", "one", "two"))
        for name, tensor in alone.items():
            moved = (tensor - start[name]).abs().max()
            assert (tensor - both[name]).abs().max() < 1e-3 * moved + 1e-6, f"{which} {name}"


def test_pairs_are_shared_out_and_a_lost_shard_is_made_again(tmp_path, teacher):
    recipe = {"count": 48, "sampler": "heun", "steps": 2, "seed": 1, "shard": 16, "batch_size": 5}
    run = load(teacher)
    one, two = tmp_path / "one", tmp_path / "two"
    generate_pairs(run, one, **recipe)
    shutil.copytree(one, two)
    (two / "000001.safetensors").unlink()
    (two / "000002.safetensors").unlink()
    file = tmp_path / "pairs.yaml"
    file.write_text(yaml.safe_dump({"run": str(teacher), "out": str(two), **recipe}))
    in_two("scripts.pairs", file)
    manifests = [json.loads((folder / "pairs.json").read_text()) for folder in (one, two)]
    assert manifests[0]["evals"] == pytest.approx(manifests[1]["evals"])
    assert manifests[0]["shards"].keys() == manifests[1]["shards"].keys()
    same = [(folder / "000000.safetensors").read_bytes() for folder in (one, two)]
    assert same[0] == same[1]
    for k in (1, 2):
        first, second = (load_file(folder / f"{k:06d}.safetensors") for folder in (one, two))
        assert torch.equal(first["index"], second["index"])
        assert torch.equal(first["label"], second["label"])
        torch.testing.assert_close(first["x0"], second["x0"], rtol=2e-3, atol=2e-3)
        assert first["x0"].dtype == second["x0"].dtype == torch.float16
