"""Our U-Net as diffusers' UNet2DModel, where that is exact.

Exact where patch = 1, every group norm has 32 groups (widths of 128 and more), the table has 1000
entries and the path and prediction are diffusers' own. The one difference is the time embedding,
sinusoids of 1000 t = k + 1 here and of k there: by the addition theorem a rotation of each pair
(cos, sin), which the linear layer after it absorbs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.model import ModelSpec
from teachers.diffusers_format.write_schedule import converts, table_steps


def why_not_unet2d(spec: ModelSpec) -> str | None:
    """Why this U-Net of ours is not exactly a UNet2DModel; None where it is."""
    n = spec.network
    if converts(spec):
        return f"path {spec.path} and prediction {spec.prediction} are not diffusers' own"
    if n.patch != 1:
        return f"it works on patches of {n.patch}"
    if table_steps(spec) != 1000:
        return f"its embedding of time has 1000 steps and its table {table_steps(spec)}"
    if any(width < 128 or width % 32 for width in n.widths):
        return "its group norms have different numbers of groups"
    if any(n.widths[level] % n.head_width for level in n.attention):
        return "its attention heads have different widths"
    return None


def unet2d_config(spec: ModelSpec) -> dict:
    n = spec.network
    kinds = [
        "AttnDownBlock2D" if level in n.attention else "DownBlock2D"
        for level in range(len(n.widths))
    ]
    return {
        "sample_size": spec.shape[1],
        "in_channels": spec.shape[0],
        "out_channels": spec.shape[0],
        "block_out_channels": list(n.widths),
        "layers_per_block": n.blocks,
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
        "add_attention": len(n.widths) - 1 in n.attention,
        "attention_head_dim": n.head_width,
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,  # of the middle block, which has none by default beside scale_shift
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
        "dropout": n.dropout,
        "num_class_embeds": spec.num_classes + 1 if spec.num_classes and n.conditional else None,
    }


def unet2d_state(spec: ModelSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our U-Net's tensors under UNet2DModel's names, the time embedding's first layer turned by one
    timestep."""
    n = spec.network
    new: dict[str, Tensor] = {}

    def take(old: str, name: str) -> None:
        for kind in ("weight", "bias"):
            new[f"{name}.{kind}"] = state[f"{old}.{kind}"]

    def block(old: str, name: str) -> None:
        layers = {
            "norm1": "norm1",
            "conv1": "conv1",
            "modulation": "time_emb_proj",
            "norm2": "norm2",
            "conv2": "conv2",
        }
        for ours_, theirs in layers.items():
            take(f"{old}.{ours_}", f"{name}.{theirs}")
        if f"{old}.skip.weight" in state:
            take(f"{old}.skip", f"{name}.conv_shortcut")

    def attention(old: str, name: str) -> None:
        if f"{old}.norm.weight" not in state:
            return
        take(f"{old}.norm", f"{name}.group_norm")
        take(f"{old}.out", f"{name}.to_out.0")
        for kind in ("weight", "bias"):
            for letter, part in zip("qkv", state[f"{old}.qkv.{kind}"].chunk(3), strict=True):
                new[f"{name}.to_{letter}.{kind}"] = part

    def stage(old: str, name: str, index: int) -> None:
        block(f"{old}.block", f"{name}.resnets.{index}")
        attention(f"{old}.attention", f"{name}.attentions.{index}")

    take("stem", "conv_in")
    take("time.0", "time_embedding.linear_1")
    take("time.2", "time_embedding.linear_2")
    weight = state[
        "time.0.weight"
    ].double()  # of [cos, sin] of w (k + 1); as one of [cos, sin] of w k
    half = weight.shape[1] // 2
    w = torch.exp(-math.log(10_000.0) / half * torch.arange(half, dtype=torch.float64))
    of_cos, of_sin = weight[:, :half], weight[:, half:]
    turned = [of_cos * w.cos() + of_sin * w.sin(), of_sin * w.cos() - of_cos * w.sin()]
    new["time_embedding.linear_1.weight"] = torch.cat(turned, dim=1).to(
        state["time.0.weight"].dtype
    )
    if "label.weight" in state:
        new["class_embedding.weight"] = state["label.weight"]
    levels = len(n.widths)
    for level in range(levels):
        for i in range(n.blocks):
            stage(f"down.{level * n.blocks + i}", f"down_blocks.{level}", i)
        for i in range(n.blocks + 1):
            stage(f"up.{level * (n.blocks + 1) + i}", f"up_blocks.{level}", i)
        if level < levels - 1:
            take(f"shrink.{level}", f"down_blocks.{level}.downsamplers.0.conv")
            take(f"grow.{level}", f"up_blocks.{level}.upsamplers.0.conv")
    block("middle.0.block", "mid_block.resnets.0")
    attention("middle.0.attention", "mid_block.attentions.0")
    block("middle.1", "mid_block.resnets.1")
    take("head.0", "conv_norm_out")
    take("head.2", "conv_out")
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in new.items()}
