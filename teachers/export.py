"""A run as a folder in diffusers' format: ours as UNet2DModel where that is exact, else with a small module beside its weights.

Exact where patch = 1, every group norm has 32 groups (widths of 128 and more), the table has 1000 entries and the path and
prediction are diffusers' own. The one difference is the time embedding, sinusoids of 1000 t = k + 1 here and of k there: by the
addition theorem a rotation of each pair (cos, sin), which the linear layer after it absorbs.
"""

from __future__ import annotations

import inspect
import json
import math
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.errors import UserError
from core.model import Model
from core.model_spec import ModelSpec
from core.networks import unet as ours
from core.networks.diffusers import DiffusersConfig, diffusers_library
from core.networks.unet import UNet, UNetConfig
from core.predictions import SingularTime
from core.runs import Run
from core.table_path import BetaTable
from teachers.pretrained import ORIGIN, OURS, Origin

THEIR_PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
MODULE, PIPELINE = "modeling_fast_sampling", "pipeline"


def time_convention(steps: int) -> str:
    return f"timestep k of diffusers (0..{steps - 1}) is t = (k + 1) / {steps}; t = 0 is clean data"


def _table_steps(spec: ModelSpec) -> int:
    return spec.path.steps if isinstance(spec.path, BetaTable) else 1000


def scheduler_config(spec: ModelSpec, model: Model) -> dict:
    """The arguments of a DDPMScheduler for this model's path (rectified and trigonometric ones as trained_betas of 1000
    entries, with no signal left at the last) and prediction."""
    path, steps = spec.path, _table_steps(spec)
    converted = _converts(spec)
    config = {
        "num_train_timesteps": steps,
        "prediction_type": "v_prediction" if converted else THEIR_PREDICTION[spec.prediction],
        "clip_sample": False,
        "timestep_spacing": "trailing",
        "variance_type": "fixed_small",
    }
    if path == "vp-linear":
        return config | {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    if path == "vp-cosine":
        return config | {"beta_schedule": "squaredcos_cap_v2"}
    if isinstance(path, BetaTable) and path.schedule != "given":
        ends = {"beta_start": path.first, "beta_end": path.last, "rescale_betas_zero_snr": path.zero_terminal_snr}
        return config | {"beta_schedule": path.schedule, **ends}
    if isinstance(path, BetaTable):
        return config | {"trained_betas": list(path.betas), "rescale_betas_zero_snr": path.zero_terminal_snr}
    lam = model.path.lam(torch.arange(steps + 1, dtype=torch.float64) / steps)
    log_signal = -nn.functional.softplus(-2 * lam)  # log alpha^2 once alpha^2 + sigma^2 = 1
    return config | {"trained_betas": (-torch.expm1(log_signal.diff())).tolist()}


def _converts(spec: ModelSpec) -> bool:
    """Whether the network's output means nothing to diffusers as it is."""
    return spec.path == "rectified" or spec.prediction not in THEIR_PREDICTION or spec.boundary_t_min is not None


def conversion_table(model: Model, steps: int) -> Tensor:
    """c_in, c_x, c_F [3, steps] float64 with v = c_x z + c_F F(c_in z), for z = x / sqrt(alpha^2 + sigma^2).

    What the output means is affine in (F, x), so two readings of it tell all: of F = 1 alone and of x alone.

    Raises:
        UserError: a prediction that is singular at a timestep.
    """
    t = (torch.arange(steps, dtype=torch.float64) + 1) / steps
    c = model.path.at(t)
    norm = (c.alpha.square() + c.sigma.square()).sqrt()
    one, zero = torch.ones(steps, 1, dtype=torch.float64), torch.zeros(steps, 1, dtype=torch.float64)
    try:
        from_F, from_x = model.read(one, zero, t), model.read(zero, norm[:, None], t)
    except SingularTime as error:
        raise UserError(f"this model cannot be exported: {error}") from error
    parts = [(c.alpha * g.eps[:, 0] - c.sigma * g.x0[:, 0]) / norm for g in (from_x, from_F)]
    return torch.stack([norm, *parts])


def why_not_unet2d(spec: ModelSpec) -> str | None:
    """Why this U-Net of ours is not exactly a UNet2DModel; None where it is."""
    n = spec.network
    if _converts(spec):
        return f"path {spec.path} and prediction {spec.prediction} are not diffusers' own"
    if n.patch != 1:
        return f"it works on patches of {n.patch}"
    if _table_steps(spec) != 1000:
        return f"its embedding of time has 1000 steps and its table {_table_steps(spec)}"
    if any(width < 128 or width % 32 for width in n.widths):
        return "its group norms have different numbers of groups"
    if any(n.widths[level] % n.head_width for level in n.attention):
        return "its attention heads have different widths"
    return None


def _unet2d_config(spec: ModelSpec) -> dict:
    n = spec.network
    kinds = ["AttnDownBlock2D" if level in n.attention else "DownBlock2D" for level in range(len(n.widths))]
    return {
        "sample_size": spec.side,
        "in_channels": spec.channels,
        "out_channels": spec.channels,
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
    """Our U-Net's tensors under UNet2DModel's names, the time embedding's first layer turned by one timestep."""
    n = spec.network
    new: dict[str, Tensor] = {}

    def take(old: str, name: str) -> None:
        for kind in ("weight", "bias"):
            new[f"{name}.{kind}"] = state[f"{old}.{kind}"]

    def block(old: str, name: str) -> None:
        layers = {"norm1": "norm1", "conv1": "conv1", "modulation": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
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
    weight = state["time.0.weight"].double()  # of [cos, sin] of w (k + 1); as one of [cos, sin] of w k
    half = weight.shape[1] // 2
    w = torch.exp(-math.log(10_000.0) / half * torch.arange(half, dtype=torch.float64))
    of_cos, of_sin = weight[:, :half], weight[:, half:]
    turned = [of_cos * w.cos() + of_sin * w.sin(), of_sin * w.cos() - of_cos * w.sin()]
    new["time_embedding.linear_1.weight"] = torch.cat(turned, dim=1).to(state["time.0.weight"].dtype)
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


def _sources(*things) -> str:
    return "\n\n".join(inspect.getsource(thing) for thing in things)


def _module_source() -> str:
    """unet/modeling_fast_sampling.py: our U-Net's own source, and the class that diffusers calls."""
    from teachers import exported

    parts = (
        ours.sinusoidal_embedding,
        ours.group_norm,
        ours.zeroed,
        ours.ResidualBlock,
        ours.SelfAttention,
        ours.Stage,
        ours.UNet,
    )
    return "\n".join(
        [
            '"""The U-Net of the fast-sampling lab (MIT licence) for diffusers. Written by scripts.teacher export."""\n',
            "from __future__ import annotations\n",
            "import math\n",
            "import torch",
            "from diffusers import ConfigMixin, ModelMixin",
            "from diffusers.configuration_utils import register_to_config",
            "from diffusers.models.unets.unet_2d import UNet2DOutput",
            "from torch import Tensor, nn",
            "from torch.nn import functional as F\n\n",
            "UserError = ValueError\n\n",
            _sources(*parts, exported.FastSamplingUNet),
        ]
    )


def _pipeline_source() -> str:
    from teachers import exported

    return "\n".join(
        [
            '"""Sampling for models of the fast-sampling lab (MIT licence). Written by scripts.teacher export."""\n',
            "from __future__ import annotations\n",
            "import inspect\n",
            "import torch",
            "from diffusers import DiffusionPipeline",
            "from diffusers.pipelines.pipeline_utils import ImagePipelineOutput",
            "from torch import Tensor\n\n",
            _sources(exported.FastSamplingPipeline),
        ]
    )


def published_folder(run: Run) -> Path | None:
    """The diffusers folder (in the hub's cache, for a hub id) that a run was loaded from; None for runs of ours."""
    component = run.weights_file.parent
    return next((folder for folder in (component, component.parent) if (folder / "model_index.json").is_file()), None)


def export(run: Run, out: Path) -> str:
    """Writes `out` and says in words what was written.

    Raises:
        UserError: `out` exists and is not empty, diffusers is not installed, or a model that cannot be exported.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: choose another folder")
    diffusers = diffusers_library("exporting to its format")
    spec, source = run.spec, published_folder(run)
    if not isinstance(spec.network, (UNetConfig, DiffusersConfig)):
        raise UserError(f"{run.folder}: network {spec.network.name} is no denoiser and is not exported")
    if isinstance(spec.network, UNetConfig) and spec.network.second_time:
        raise UserError(
            f"{run.folder}: network.second_time = True: diffusers has no second time; only teachers and flows are exported"
        )
    if isinstance(spec.network, DiffusersConfig) and source is None and _converts(spec):
        raise UserError(
            f"{run.folder}: path {spec.path}, prediction {spec.prediction} of a {spec.network.class_name} is not diffusers' "
            "own (a consistency student or a flow); only eps, x0 and v on DDPM tables are exported"
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if source is not None:
            words = _straight(run, source, partial)
        elif isinstance(spec.network, DiffusersConfig):
            words = _diffusers_network(diffusers, run, partial)
        else:
            words = _our_unet(diffusers, run, partial)
        if source is None and (run.folder / "card.json").is_file():
            shutil.copyfile(run.folder / "card.json", partial / "card.json")
    except BaseException:
        shutil.rmtree(partial)
        raise
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return words


def _index(diffusers, partial: Path, pipeline: str | list[str], name: str, network: list[str]) -> None:
    index = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__}
    index |= {"scheduler": ["diffusers", "DDPMScheduler"], name: network}
    (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _origin(run: Run, partial: Path, **more) -> None:
    values = Origin(
        run=run.name,
        method=run.method,
        teacher=run.teacher,
        data=run.data,
        ema=run.ema,
        train_images=run.train_images,
        train_evals=run.train_evals,
        train_seconds=run.train_seconds,
        config_sha256=run.config_sha256,
        time=time_convention(_table_steps(run.spec)),
        **more,
    )
    (partial / ORIGIN).write_text(values.model_dump_json(indent=1, exclude_none=True) + "\n")


def _straight(run: Run, source: Path, partial: Path) -> str:
    """A published checkpoint: its own files, in subfolders, with the weights as they are in memory."""
    from teachers.pretrained import read_checkpoint

    checkpoint = read_checkpoint(source)
    name = "transformer" if checkpoint.class_name == "DiTTransformer2DModel" else "unet"
    for file in ("model_index.json", ORIGIN, "README.md", "card.json", f"{PIPELINE}.py"):
        if (source / file).is_file():
            shutil.copyfile(source / file, partial / file)
    (partial / "scheduler").mkdir()
    shutil.copyfile(checkpoint.scheduler_file, partial / "scheduler" / "scheduler_config.json")
    if checkpoint.class_name == OURS:
        shutil.copytree(checkpoint.component, partial / name)
    else:
        run.model.network.inner.save_pretrained(partial / name)
    return f"{checkpoint.class_name} as it came"


def _diffusers_network(diffusers, run: Run, partial: Path) -> str:
    """A student that has a published teacher's architecture."""
    network = run.spec.network
    name = "unet" if network.class_name == "UNet2DModel" else "transformer"
    run.model.network.inner.save_pretrained(partial / name)
    diffusers.DDPMScheduler(**scheduler_config(run.spec, run.model)).save_pretrained(partial / "scheduler")
    plain = not network.labels
    _index(
        diffusers,
        partial,
        "DDPMPipeline" if plain else [PIPELINE, "FastSamplingPipeline"],
        name,
        ["diffusers", network.class_name],
    )
    if not plain:
        (partial / f"{PIPELINE}.py").write_text(_pipeline_source())
    _origin(run, partial, null_label=network.null_label)
    return network.class_name


def _our_unet(diffusers, run: Run, partial: Path) -> str:
    spec, network = run.spec, run.model.network
    assert isinstance(network, UNet)
    diffusers.DDPMScheduler(**scheduler_config(spec, run.model)).save_pretrained(partial / "scheduler")
    labels = network.num_classes
    reason = why_not_unet2d(spec)
    pipeline: str | list[str] = [PIPELINE, "FastSamplingPipeline"]
    if reason is None:
        theirs = diffusers.UNet2DModel(**_unet2d_config(spec))
        theirs.load_state_dict(unet2d_state(spec, network.state_dict()))  # strict: every tensor has its place
        theirs.save_pretrained(partial / "unet")
        pipeline = pipeline if labels else "DDPMPipeline"
        _index(diffusers, partial, pipeline, "unet", ["diffusers", "UNet2DModel"])
        _origin(run, partial, null_label=bool(labels))
    else:
        folder, n = partial / "unet", spec.network
        folder.mkdir()
        converts = _converts(spec)
        config = {"_class_name": OURS, "_diffusers_version": diffusers.__version__, "sample_size": spec.side}
        config |= {"in_channels": spec.channels, "out_channels": spec.channels, "num_classes": labels}
        config |= {key: getattr(n, key) for key in ("widths", "blocks", "attention", "head_width", "dropout", "patch")}
        config |= {"steps": _table_steps(spec), "converts": converts}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        state = {f"unet.{name}": tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        if converts:
            state["scales"] = conversion_table(run.model, _table_steps(spec)).float()
        save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        (folder / f"{MODULE}.py").write_text(_module_source())
        _index(diffusers, partial, pipeline, "unet", [MODULE, OURS])
        _origin(run, partial, spec=spec)
    if isinstance(pipeline, list):
        (partial / f"{PIPELINE}.py").write_text(_pipeline_source())
    (partial / "README.md").write_text(_readme(run, isinstance(pipeline, list), reason))
    return "UNet2DModel, exactly" if reason is None else f"{OURS} with its own module ({reason})"


def _readme(run: Run, code: bool, reason: str | None) -> str:
    load = (
        "DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)" if code else "DDPMPipeline.from_pretrained(FOLDER)"
    )
    what = "A UNet2DModel" if reason is None else f"A network of its own, in `unet/{MODULE}.py`, since {reason}"
    return (
        f"# {run.name}\n\n{what}. {time_convention(_table_steps(run.spec)).capitalize()}.\n\n"
        f"```python\nfrom diffusers import {load.split('.')[0]}\n\npipe = {load}\nimages = pipe(batch_size=16).images\n```\n\n"
        "Written by `python -m scripts.teacher export`.\n"
    )


def load_ours(model: Model, file: Path) -> None:
    """Loads an exported FastSamplingUNet's weights into our own U-Net.

    Raises:
        UserError: a damaged file, or another architecture.
    """
    try:
        state = {name.removeprefix("unet."): tensor for name, tensor in load_file(file).items() if name != "scales"}
        model.network.load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is damaged or does not fit the spec beside it ({reason}): export the run again") from error
