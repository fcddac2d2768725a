"""python -m scripts.pairs: the pairs that a config describes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from core.config import read_config
from core.data.pairs import PairSource
from core.errors import UserError
from core.locks import only_one
from core.pairs import generate_pairs
from lab import load
from tests.helpers.command_lines import ROOT, refused, run_script, tree
from tests.helpers.tiny import train_tiny


def test_pairs_are_those_of_their_config(tmp_path):
    """Bit by bit, with overrides, and the defaults that the published flows had."""
    train_tiny(tmp_path / "flow", images=64)
    file = tmp_path / "pairs.yaml"
    values = {"run": str(tmp_path / "flow"), "out": str(tmp_path / "a"), "count": 40, "steps": 3}
    file.write_text(yaml.safe_dump(values))
    code, errors = run_script("pairs", file, "shard=32", "steps=2")
    assert code == 0, errors
    generate_pairs(load(tmp_path / "flow"), tmp_path / "b", 40, "heun", 2, seed=1, shard=32)
    for name in ("000000.safetensors", "000001.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    one, other = (json.loads((tmp_path / f / "pairs.json").read_text()) for f in "ab")
    assert one | {"seconds": 0} == other | {"seconds": 0}
    assert one["seed"] == 1 and one["guidance_scale"] == 1.0

    line = refused(tmp_path, "pairs", file, "cuont=5")
    assert "unknown key 'cuont' (did you mean 'count'?)" in line
    line = refused(tmp_path, "pairs", file, "sampler=ddpm", f"out={tmp_path}/c")
    assert "sampler 'ddpm' adds noise" in line


@pytest.fixture
def made(tmp_path):
    """Pairs in three shards, and the command that made them."""
    train_tiny(tmp_path / "flow", images=64)
    file = tmp_path / "pairs.yaml"
    values = {"run": str(tmp_path / "flow"), "out": str(tmp_path / "a"), "count": 40, "steps": 2}
    file.write_text(yaml.safe_dump(values | {"shard": 16}))
    code, errors = run_script("pairs", file)
    assert code == 0, errors
    return tmp_path / "a", file


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def lead_elsewhere(file):
    file.unlink()
    file.symlink_to(FIRST)


FIRST, SECOND, LAST = (f"{k:06d}.safetensors" for k in range(3))


@pytest.mark.parametrize(
    ("name", "damage"),
    [(LAST, cut), (FIRST, flip), (SECOND, Path.unlink), (SECOND, lead_elsewhere)],
)
def test_a_damaged_shard_is_made_again_to_the_bit(made, name, damage):
    """The same command mends it, and its work counts once."""
    folder, file = made
    before = tree(folder)
    damage(folder / name)
    with pytest.raises(UserError, match=f"{name} is .*: run scripts.pairs again"):
        PairSource(folder, 0)
    code, errors = run_script("pairs", file)
    assert code == 0 and f"{name} is damaged or missing and is made again" in errors
    after = tree(folder)
    one, other = (json.loads(files.pop("pairs.json")) for files in (before, after))
    assert after == before
    assert one["shards"] == other["shards"]
    # a shard of 8 in place of one of 16 is taken for as dear as they are on average
    assert abs(other["evals"] / one["evals"] - 1) <= 0.15
    PairSource(folder, 0)
    _, errors = run_script("pairs", file)
    assert "made again" not in errors


def test_two_processes_for_the_same_pairs(made):
    """The second one is told, and what the first has made stays."""
    folder, file = made
    before = tree(folder)
    for process, count in (("mine", 40), ("another", 48)):
        with only_one(folder, "held"):
            line = refused(folder.parent, "pairs", file, f"count={count}")
        assert f"another process makes pairs in {folder}" in line, process
    assert tree(folder) == before


def test_shipped_pairs_are_those_of_the_published_flows():
    """What configs/*/pairs.sh said at commit e7b5f35."""
    counts = {"digits": 16384, "fashion_mnist": 24576, "cifar10": 1_000_000}
    for dataset, count in counts.items():
        for name, steps in (("flow", 25 if dataset == "cifar10" else 8), ("reflow", 4)):
            want = {"run": f"runs/{dataset}/{name}", "out": f"runs/{dataset}/{name}-pairs"}
            want |= {"count": count, "sampler": "heun", "steps": steps}
            want |= {"batch_size": 1024} if dataset == "cifar10" else {}
            assert read_config(ROOT / "configs" / dataset / f"{name}_pairs.yaml") == want
