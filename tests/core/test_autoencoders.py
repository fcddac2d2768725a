"""Autoencoders on disk against diffusers' own, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.autoencoders import CONFIG, WEIGHTS, open_autoencoder, read_autoencoder, write_autoencoder
from core.errors import UserError

SIZES = {
    "two levels": {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 3},
    "three, deep, grey": {
        "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8, 16),
        "layers_per_block": 2, "norm_num_groups": 8, "scaling_factor": 0.5, "shift_factor": 0.25,
    },
    "no attention": {"mid_block_add_attention": False, "norm_num_groups": 2,
                     "block_out_channels": (4, 8)},
    "no 1x1 convolutions": {"use_quant_conv": False, "use_post_quant_conv": False,
                            "block_out_channels": (16,), "norm_num_groups": 16},
}  # fmt: skip


def theirs(**size):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    levels = len(size["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels,
              "up_block_types": ("UpDecoderBlock2D",) * levels}  # fmt: skip
    model = diffusers.AutoencoderKL(**blocks, **size).eval()
    for parameter in model.parameters():  # norms start as the identity, which proves nothing
        torch.nn.init.normal_(parameter, std=0.15)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    theirs(**SIZES["two levels"]).save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_ours_equals_diffusers_and_goes_back(name, tmp_path):
    model = theirs(**SIZES[name])
    model.save_pretrained(tmp_path / "kl")
    codec = read_autoencoder(tmp_path / "kl")
    scale, shift = model.config.scaling_factor, model.config.shift_factor or 0.0
    images = torch.randint(0, 256, (3, model.config.in_channels, 16, 16), dtype=torch.uint8)
    given = model.encode(images / 127.5 - 1).latent_dist
    mean, std = codec.moments(images)
    assert torch.allclose(mean, (given.mean - shift) * scale, atol=1e-5, rtol=1e-5)
    assert torch.allclose(std, given.std * scale, atol=1e-5, rtol=1e-5)
    made = model.decode(mean / scale + shift).sample
    ours = codec.autoencoder.decode(mean / scale + shift)
    assert made.std() > 0.02 and torch.allclose(ours, made, atol=1e-5, rtol=1e-5)
    pixels = ((made + 1) * 127.5).round().clamp(0, 255)
    assert (codec.decode(mean).float() - pixels).abs().max() <= 1  # rounding at a half

    write_autoencoder(codec, tmp_path / "back")
    again = type(model).from_pretrained(tmp_path / "back")
    assert torch.equal(again.decode(mean).sample, model.decode(mean).sample)
    assert again.config.scaling_factor == scale and (again.config.shift_factor or 0.0) == shift
    assert read_autoencoder(tmp_path / "back", codec.spec.autoencoder).spec == codec.spec


@torch.no_grad()
def test_weights_of_diffusers_first_versions_are_read(folder):
    """Attention was called otherwise, and its linear layers were 1x1 convolutions."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    codec, state = read_autoencoder(folder), {}
    for key, tensor in load_file(folder / WEIGHTS[0]).items():
        for new, word in old.items():
            if new in key and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            key = key.replace(new, word)
        state[key] = tensor
    assert any("proj_attn" in key for key in state)
    save_file(state, folder / WEIGHTS[0])
    assert read_autoencoder(folder).spec == codec.spec


def test_a_folder_is_known_by_its_content_and_not_by_its_place(folder):
    codec = read_autoencoder(folder)
    folder.rename(folder.with_name("moved"))
    moved = read_autoencoder(folder.with_name("moved"))
    assert moved.sha256 == codec.sha256
    config = json.loads((folder.with_name("moved") / CONFIG).read_text())
    changed = json.dumps(config | {"scaling_factor": 0.2})
    (folder.with_name("moved") / CONFIG).write_text(changed)
    assert read_autoencoder(folder.with_name("moved")).sha256 != codec.sha256


def test_a_pipeline_is_opened_by_its_vae(folder, tmp_path):
    (tmp_path / "pipeline").mkdir()
    folder.rename(tmp_path / "pipeline" / "vae")
    codec = open_autoencoder(str(tmp_path / "pipeline"), None)
    assert codec.spec.autoencoder == "pipeline" and codec.spec.factor == 2


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("_class_name", "VQModel", "_class_name is 'VQModel', and no AutoencoderKL"),
        ("act_fn", "gelu", "act_fn = 'gelu' is not read, only 'silu'"),
        ("latents_mean", [0.0], r"latents_mean = \[0.0\] is not read"),
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 2, "down_block_types = .* is not read"),
        ("norm_num_groups", 3, "groups=3 does not divide the width 8"),
        ("scaling_factor", "big", "scaling_factor and shift_factor are no numbers"),
        ("scaling_factor", 0, "scale: Input should be greater than 0"),
        ("block_out_channels", [8, 8], "does not fit its config.json"),
        ("in_channels", 4, "out_channels = 3 is not read, only 4"),
        ("in_channels", "3", "in_channels = '3': a number from 1 to 4096"),
        ("block_out_channels", 8, "block_out_channels|widths"),
    ],
)
def test_a_config_that_ours_has_no_equal_of_is_refused(folder, key, value, words):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=words):
        read_autoencoder(folder)


def test_damaged_and_missing_files_are_refused_with_one_line(folder):
    weights = folder / WEIGHTS[0]
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{weights} is damaged \(copy the autoencoder again"):
        read_autoencoder(folder)
    weights.unlink()
    with pytest.raises(UserError, match=rf"{weights} is missing"):
        read_autoencoder(folder)
    (folder / CONFIG).write_text("[")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_autoencoder(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(UserError, match="is no autoencoder: give the folder of a run"):
        open_autoencoder(str(folder), None)
