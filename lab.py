"""The laboratory's face in Python: methods by name, and any trained model by its folder.

Everything is imported when it is asked for, and nothing registers itself by being imported.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError, nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from core.model import Model, ModelSpec
    from core.runs import Run
    from core.setting import Setting
    from core.training.method import Method
    from eval.rows import Row
    from eval.sweep.config import SweepConfig

METHODS: dict[str, str] = {
    "ddpm": "teachers.ddpm:DDPM",
    "autoencoder": "teachers.autoencoder:Autoencoder",
    "progressive": "students.progressive:Progressive",
    "consistency": "students.consistency:Consistency",
    "consistency-training": "students.consistency_training:ConsistencyTraining",
    "scm": "students.scm:SCM",
    "multistep-consistency": "students.multistep:MultistepConsistency",
    "truncated-consistency": "students.truncated:TruncatedConsistency",
    "knowledge-distillation": "students.knowledge:KnowledgeDistillation",
    "guided-distillation": "students.guided:GuidedDistillation",
    "dmd2": "students.dmd2:DMD2",
    "sid": "students.sid:SiD",
    "add": "students.adversarial:AdversarialDistillation",
    "gan-post-training": "students.post_training:PostTraining",
    "rectified-flow": "flows.rectified:RectifiedFlow",
    "flow-distillation": "flows.distill:FlowDistillation",
    "meanflow": "flows.meanflow:MeanFlow",
    "shortcut": "flows.shortcut:Shortcut",
    "self-distilled": "flows.self_distilled:SelfDistilled",
    "align-your-flow": "flows.align:Align",
    "soflow": "flows.soflow:SoFlow",
    "moment-matching": "flows.moments:Moments",
    "ppca": "baselines.ppca:PPCA",
    "vae": "baselines.vae:VAE",
    "gan": "baselines.gan:GAN",
}
# Formats of models besides the runs that scripts.train makes
FORMATS: tuple[str, ...] = ("teachers.diffusers_format.read:PRETRAINED",)


def _named(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def method_class(name: str) -> type[Method]:
    """The class that trains the method of that name; raises UserError with the nearest known
    one."""
    if name not in METHODS:
        raise UserError(f"unknown method '{name}'{nearest(name, METHODS)}")
    return _named(METHODS[name])


def load(
    folder: str | Path,
    weights: str = "ema",
    device: torch.device | str = "cpu",
    steps: int | None = None,
) -> Run:
    """A trained model: a run folder, a folder in diffusers' format, or a hub id.

    Args:
        weights: "ema", "raw", or "half-life 3000", in images, of a run with snapshots.
        steps: how many steps it will be sampled in, for runs that keep a model per number of steps.

    Raises:
        UserError: there is no model, it has no checkpoint yet, or it is damaged.
    """
    from core.runs import load_run

    return load_run(folder, weights, device, steps, [_named(place) for place in FORMATS])


def feature_network(name: str, spec: ModelSpec, device: torch.device | str = "cpu") -> nn.Module:
    """The feature network of that name for samples of `spec`, as a critic on features sees it.

    Raises:
        UserError: see eval.features.networks.feature_network.
    """
    from eval.features.networks import feature_network as network

    return network(name, spec, device)


def sample(
    run_or_model: Run | Model,
    setting: Setting | None = None,
    n: int = 64,
    seed: int = 0,
    label: int | None = None,
    batch_size: int = 256,
    caption: str | None = None,
) -> torch.Tensor:
    """uint8 images [n, C, S, S] on the CPU, or points in float32; sample i depends on (seed, i)
    alone.

    Args:
        setting: None: as the model is meant to be sampled.
        label: one class for all.
        caption: one for all. Where neither is given, classes and held-out captions take turns.

    Raises:
        UserError: the setting does not fit the model, or its weights have diverged.
    """
    import torch

    from core.sampling.sample import sample_images

    model = getattr(run_or_model, "model", run_or_model)
    batches = torch.arange(n).split(batch_size)
    setting = setting or model.spec.setting
    return torch.cat(
        [sample_images(model, setting, i, seed, label, caption=caption) for i in batches]
    )


def measure(config: SweepConfig) -> list[Row]:
    """The rows of a sweep: points that its curves file does not hold yet are measured and appended.

    Raises:
        UserError: see eval.sweep.run.run_sweep.
    """
    from eval.sweep.run import run_sweep

    return run_sweep(config, load)


def evaluate(
    run: Run, setting: Setting | None = None, n: int = 1000, extractor: str = "fashion-cnn"
) -> Row:
    """One measured point: quality of n samples against the run's training data.

    Args:
        setting: None: as the model is meant to be sampled.
        extractor: whose features the distance is taken in (docs/measuring.md).

    Raises:
        UserError: what cannot be measured, as in a sweep.
    """
    import tempfile

    from core.config import parse
    from eval.sweep.config import SweepConfig

    chosen = setting or run.spec.setting
    entry = {
        "run": str(run.folder),
        "samplers": [chosen.sampler],
        "steps": [chosen.steps],
        "guidance_scales": [chosen.guidance_scale],
        "threshold": chosen.threshold,
        "grid": chosen.grid,
        "options": chosen.options,
        "guidance_interval": chosen.guidance_interval,
    }
    with tempfile.TemporaryDirectory() as folder:
        values = {"out": f"{folder}/rows.jsonl", "n": n, "extractor": extractor}
        values |= {"floor": False, "reconstructions": False, "entries": [entry]}
        return measure(parse(SweepConfig, values, "lab.evaluate"))[0]


def save_grid(images: torch.Tensor, file: str | Path, columns: int = 8) -> None:
    """uint8 images [N, C, S, S] as one PNG, small ones enlarged; or points as a scatter."""
    from core.pictures import save_png, sheet

    picture, scale = sheet(images, columns)
    save_png(picture, Path(file), scale)
