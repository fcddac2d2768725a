"""Weights as they are published: variants, shards, pickled ones, averages in a folder of their own;
and files that would run code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import UserError
from teachers.diffusers_format.read import load_pretrained
from tests.helpers.attacks import KINDS, hostile
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.command_lines import refused, run_script

PLAIN = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def _state(run) -> dict[str, torch.Tensor]:
    return run.model.network.inner.state_dict()


def _same(run, expected: dict[str, torch.Tensor]) -> bool:
    found = _state(run)
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor.float()) for name, tensor in expected.items()
    )


def _saved_by_diffusers(folder: Path, **options) -> dict[str, torch.Tensor]:
    """Saves the network again in place of its plain file; returns what it holds."""
    component = folder / "unet"
    model = diffusers.UNet2DModel.from_pretrained(component)
    (component / PLAIN).unlink()
    if options.get("variant") in ("fp16", "bf16"):
        model = model.half() if options["variant"] == "fp16" else model.bfloat16()
    model.save_pretrained(component, **options)
    assert not (component / PLAIN).exists()
    return model.state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "fp16"},
        {"variant": "bf16"},
        {"variant": "non_ema"},
        {"max_shard_size": 9000},
        {"variant": "fp16", "max_shard_size": 9000},
        {"safe_serialization": False},
        {"safe_serialization": False, "variant": "fp16"},
        {"safe_serialization": False, "max_shard_size": 9000},
        {"safe_serialization": False, "variant": "fp16", "max_shard_size": 9000},
    ],
    ids=str,
)
def test_what_diffusers_saves_is_read(folder, options):
    expected = _saved_by_diffusers(folder, **options)
    run = load_pretrained(folder)
    assert _same(run, expected) and len(run.weights_sha256) == 64
    shards = len(list(run.weights_file.parent.glob(f"{PLAIN.split('.')[0]}*-of-*")))
    assert (shards > 1) == ("max_shard_size" in options)


def test_each_shard_counts_in_the_hash(folder):
    _saved_by_diffusers(folder, max_shard_size=9000)
    run = load_pretrained(folder)
    before, last = run.weights_sha256, max(run.weights_file.parent.glob("*-of-*"))
    assert last != run.weights_file
    state = load_file(last)
    name = min(state)
    save_file(state | {name: state[name] + 1}, last, metadata={"format": "pt"})
    assert load_pretrained(folder).weights_sha256 != before


def test_of_several_the_plain_one_is_taken_and_named(folder, capsys):
    component = folder / "unet"
    model = diffusers.UNet2DModel.from_pretrained(component)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    plain = (component / PLAIN).read_bytes()
    (component / PLAIN).unlink()
    model.save_pretrained(component, variant="a")
    model.save_pretrained(component, safe_serialization=False)
    model.half().save_pretrained(component, variant="fp16")
    model.save_pretrained(component, variant="fp16", safe_serialization=False)
    model.save_pretrained(folder / "unet_ema")
    (component / PLAIN).write_bytes(plain)
    assert _same(load_pretrained(folder), expected)
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith(f"{component / PLAIN} was taken, not ")
    for other in (".bin", ".a.safetensors", ".fp16.safetensors", ".fp16.bin"):
        assert f"unet/diffusion_pytorch_model{other}" in line
    assert f"unet_ema/{PLAIN}" in line
    assert _same(load_pretrained(folder), expected)
    assert "was taken" not in capsys.readouterr().err  # said once


def test_averages_in_a_folder_of_their_own(folder):
    expected = _state(load_pretrained(folder))
    (folder / "unet").rename(folder / "unet_ema")
    assert _same(load_pretrained(folder), expected)
    (folder / "unet").mkdir()  # there, without weights
    shutil.copyfile(folder / "unet_ema" / "config.json", folder / "unet" / "config.json")
    run = load_pretrained(folder)
    assert _same(run, expected) and run.weights_file.parent.name == "unet_ema"


def test_shards_that_do_not_belong_together(folder):
    _saved_by_diffusers(folder, max_shard_size=9000)
    index = folder / "unet" / f"{PLAIN}.index.json"
    content = json.loads(index.read_text())
    first, second = sorted(set(content["weight_map"].values()))[:2]
    tensor = next(name for name, shard in content["weight_map"].items() if shard == first)

    def with_index(**changes) -> str:
        index.write_text(json.dumps(content | changes))
        with pytest.raises(UserError) as caught:
            load_pretrained(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    moved = content["weight_map"] | {tensor: second}
    assert f"{second} has no tensor '{tensor}'" in with_index(weight_map=moved)
    for name in ("../../x.safetensors", "/etc/passwd", "x.bin", "", 3, ["x"]):
        words = with_index(weight_map=content["weight_map"] | {tensor: name})
        assert "names the shard" in words or "is no index of shards" in words
    for wrong in ({}, [], None, "x"):
        assert "is no index of shards" in with_index(weight_map=wrong)
    index.write_text(json.dumps(content))
    (folder / "unet" / first).unlink()
    with pytest.raises(UserError, match=f"{first} is missing: fetch the checkpoint again"):
        load_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bin", "fp16.bin", "bin.index.json", "safetensors"])
def test_no_weights_run_code(kind, name, folder, tmp_path):
    marker, component = tmp_path / "marker", folder / "unet"
    (component / PLAIN).unlink()
    file = component / f"diffusion_pytorch_model.{name}"
    if name.endswith("json"):
        shard = "diffusion_pytorch_model-00001-of-00001.bin"
        file.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}))
        file = component / shard
    file.write_bytes(hostile(kind, marker))
    line = refused(tmp_path, "sample", folder, "--steps", "1", "--out", tmp_path / "x.png")
    assert str(file) in line and not marker.exists()


def test_more_channels_than_a_picture_has_are_refused_before_sampling(tmp_path, monkeypatch):
    folder = save_checkpoint(tmp_path / "wide", in_channels=5, out_channels=5)
    monkeypatch.setattr(
        "core.sampling.sample.sample_images", lambda *args, **kwargs: pytest.fail("sampled")
    )
    code, errors = run_script("sample", folder, "--steps", "1", "--out", tmp_path / "x.png")
    line = errors.splitlines()[-1]
    assert (
        code == 2
        and "images of 5 channels cannot be written as pictures, only those of 1, 3, 4" in line
    )
