"""Shards of pairs that are not what their pairs.json says: one line each, and nothing is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from core.data.pairs import Manifest, PairSource
from core.errors import UserError
from core.files import sha256_of
from tests.helpers.attacks import KINDS, hostile

NAMES = ("000000.safetensors", "000001.safetensors")


def _tensors(n: int = 4) -> dict[str, torch.Tensor]:
    x0 = torch.zeros(n, 1, 2, 2, dtype=torch.float16)
    return {"x0": x0, "label": torch.zeros(n, dtype=torch.int64), "index": torch.arange(n)}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in NAMES:
        save_file(_tensors(), tmp_path / name)
    _write(tmp_path)
    return tmp_path


def _write(folder: Path, **changes) -> None:
    manifest = Manifest(
        run="r", run_name="r", weights_sha256="0", sampler="ddim", steps=1, count=8, seed=0,
        guidance_scale=1.0, shard=4, channels=1, side=2, num_classes=0,
        shards={name: sha256_of(folder / name) for name in NAMES},
    )  # fmt: skip
    values = manifest.model_dump(mode="json") | changes
    (folder / "pairs.json").write_text(json.dumps(values))


def _refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        PairSource(folder, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_pairs_are_read(folder):
    assert len(PairSource(folder, 0).x0) == 8


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        _tensors(0),
        {"x0": _tensors()["x0"]},
        _tensors() | {"other": torch.ones(1)},
        _tensors() | {"x0": torch.zeros(4, 1, 2, 3, dtype=torch.float16)},
        _tensors() | {"x0": torch.zeros(3, 1, 2, 2, dtype=torch.float16)},
        _tensors() | {"x0": torch.zeros(4, 1, 2, 2)},
        _tensors() | {"label": torch.zeros(4)},
        _tensors() | {"index": torch.zeros(4, 1, dtype=torch.int64)},
    ],
)
def test_other_tensors_are_refused(folder, tensors):
    save_file(tensors, folder / NAMES[1])
    _write(folder)
    assert f"{NAMES[1]} does not hold what pairs.json says" in _refused(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_run_no_code(folder, kind):
    (folder / NAMES[1]).write_bytes(hostile(kind, folder / "marker"))
    _write(folder)
    assert "is a damaged pair shard" in _refused(folder)
    assert not (folder / "marker").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shards": {NAMES[0]: "0", "../000001.safetensors": "0"}}, "names the shard"),
        ({"shards": {NAMES[0]: "0", "/etc/passwd": "0"}}, "names the shard '/etc/passwd'"),
        ({"shards": {}}, "0 of 2 shards"),
        ({"shards": 3}, "shards"),
        ({"shard": 0}, "count and shard must be at least 1"),
        ({"count": -1}, "count and shard must be at least 1"),
        ({"seed": 2**70}, "seed: the number is too large"),
        ({"guidance_scale": float("nan")}, "guidance_scale: must be a finite number"),
        ({"evals": -1.0}, "evals: Input should be greater than or equal to 0"),
        ({"seconds": float("inf")}, "seconds: must be a finite number"),
        ({"another": 1}, "unknown key 'another'"),
    ],
)
def test_manifests_that_say_something_else(folder, changes, words):
    _write(folder, **changes)
    assert words in _refused(folder)


@pytest.mark.parametrize("content", [b"", b"[", b"[" * 100_000, b"3", b"null", b"\xff", b"{}"])
def test_manifests_that_are_none(folder, content):
    (folder / "pairs.json").write_bytes(content)
    assert "pairs.json" in _refused(folder)


def test_a_truncated_shard(folder):
    (folder / NAMES[0]).write_bytes(save(_tensors())[:-3])
    assert "is truncated or was changed" in _refused(folder)
    _write(folder)  # its hash is right and it is damaged all the same
    assert "is a damaged pair shard" in _refused(folder)
