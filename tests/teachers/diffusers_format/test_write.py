"""Exported runs, loaded by diffusers alone: in a process without this repository, or by its own
classes; and back again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.autoencoders import read_autoencoder
from core.codec import Latents
from core.condition import UNCONDITIONED, Condition
from core.data import DataConfig
from core.diffusion.grids import make_grid
from core.diffusion.parameterisations import ConsistencyFunction
from core.diffusion.tables import BetaTable
from core.errors import UserError
from core.files import sha256_of
from core.model import ModelSpec
from core.networks.diffusers import DiffusersConfig
from core.networks.unet import UNetConfig
from core.noise import Noise
from core.runs import Run
from core.sampling.denoisers import denoiser_for
from core.sampling.solvers import SAMPLERS
from core.weights import save_weights
from teachers.diffusers_format.read import load_pretrained
from teachers.diffusers_format.write import export

diffusers = pytest.importorskip("diffusers")
from tests.helpers.checkpoints import DIT, UNET, save_checkpoint

SMALL = UNetConfig(widths=(8, 16), blocks=1, attention=(1,), head_width=8, patch=2)
WIDE = UNetConfig(widths=(128, 160), blocks=1, attention=(1,), head_width=32)
TABLE = BetaTable(schedule="scaled_linear", steps=200, first=0.004, last=0.05)
CASES = {
    "patches, classes, v on cosine": (SMALL, "vp-cosine", "v", 10, None),
    "eps on linear": (SMALL, "vp-linear", "eps", 0, None),
    "x0 on a table": (SMALL, TABLE, "x0", 0, None),
    "flow": (SMALL, "rectified", "u", 10, None),
    "u on trigonometric": (SMALL, "trigonometric", "u", 0, None),
    "consistency": (SMALL, "vp-cosine", "v", 0, 0.002),
    "wide": (WIDE, "vp-cosine", "v", 0, None),
    "wide, classes": (WIDE, "vp-linear", "eps", 10, None),
    "latents, flow": (SMALL, "rectified", "u", 10, None),
    "wide, in latents": (WIDE, "vp-linear", "eps", 0, None),
}
CHILD = """
import sys, torch
assert not any("core" == name for name in sys.modules)
from diffusers import DDIMScheduler, DiffusionPipeline
folders, out = sys.argv[1:-1], sys.argv[-1]
results = []
for folder in folders:
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    given = torch.load(folder + "/../given.pt", weights_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(10)
    x = given["noise"]
    if type(pipe).__name__ == "FastSamplingPipeline":
        options = {"class_labels": given["label"], "guidance_scale": given["scale"], "noise": x, "num_inference_steps": 10}
        results.append(pipe(output_type="raw", **options).images)
    else:
        with torch.no_grad():
            for k in pipe.scheduler.timesteps:
                x = pipe.scheduler.step(pipe.unet(x, k).sample, k, x).prev_sample
        results.append(x)
assert not any("core" == name or name.startswith("teachers") for name in sys.modules)
torch.save(results, out)
"""


def random_codec(folder: Path) -> Latents:
    """Of latents that are as large as the images."""
    torch.manual_seed(2)
    model = diffusers.AutoencoderKL(1, 1, block_out_channels=(8,), latent_channels=1,
                                    norm_num_groups=4, scaling_factor=0.7, shift_factor=0.2)  # fmt: skip
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(folder)
    return read_autoencoder(folder)


def run_of(folder: Path, network, path, prediction, num_classes, boundary, codec=None) -> Run:
    """A run with random weights, as load_run gives it."""
    torch.manual_seed(1)
    if boundary is not None:
        prediction = ConsistencyFunction(t_min=boundary)
    spec = ModelSpec(
        network=network,
        path=path,
        prediction=prediction,
        channels=1,
        side=8,
        num_classes=num_classes,
        codec=codec.spec if codec else "pixels",
    )
    model = spec.build(codec)
    for p in model.network.parameters():
        torch.nn.init.normal_(p, std=0.3 / max(p.shape[-1], 1) ** 0.5 if p.ndim > 1 else 0.1)
    folder.mkdir(parents=True)
    save_weights(folder / "ema.safetensors", model.network.state_dict(), spec)
    model = model.eval().requires_grad_(False)
    file = folder / "ema.safetensors"
    given = (None, "half-life 5 images", "c" * 64, file, sha256_of(file), 640, 1920.0, 3.5)
    return Run(folder, folder.name, "ddpm", None, model, DataConfig(name="digits"), *given[1:])


def start(num_classes: int) -> tuple[torch.Tensor, torch.Tensor | None, float]:
    rng = Noise(3, torch.arange(3))
    return (
        rng.normal((1, 8, 8), "prior"),
        torch.tensor([0, 7, 3]) if num_classes else None,
        2.0 if num_classes else 1.0,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, tuple[Run, Path, str]]:
    made = {}
    for i, (name, case) in enumerate(CASES.items()):
        folder = tmp_path_factory.mktemp("export") / f"case{i}"
        codec = random_codec(folder / "codec") if "latents" in name else None
        run = run_of(folder / "run", *case, codec)
        made[name] = (run, folder / "out", export(run, folder / "out"))
        noise, label, scale = start(case[3])
        torch.save({"noise": noise, "label": label, "scale": scale}, folder / "given.pt")
    return made


@pytest.fixture(scope="module")
def theirs(exported, tmp_path_factory) -> dict[str, torch.Tensor]:
    """DDIM samples of every exported folder, made in a process that cannot import this
    repository."""
    place = tmp_path_factory.mktemp("elsewhere")
    (place / "child.py").write_text(CHILD)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HOME": str(place / "hf")
    }
    folders = [str(folder) for _, folder, _ in exported.values()]
    command = [sys.executable, "child.py", *folders, str(place / "out.pt")]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(exported, torch.load(place / "out.pt", weights_only=True), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_samples_elsewhere_are_ours(exported, theirs, name):
    run, _, words = exported[name]
    noise, label, scale = start(run.spec.num_classes)
    grid = make_grid("time", run.model.path, 10)
    ours = SAMPLERS["ddim"].run(denoiser_for(run.model, Condition(label), scale), noise, grid)
    if (
        run.spec.path == "rectified"
    ):  # theirs starts and ends variance-preserving; at both ends that is the same
        assert run.model.path.alpha(torch.tensor(1.0)) == 0
    if "latents" in name:
        with torch.no_grad():
            latents = ours / run.spec.codec.scale + run.spec.codec.shift
            ours = run.model.codec.autoencoder.decode(latents)
    assert ours.abs().max() > 0.1 and torch.isfinite(ours).all()
    assert float((ours - theirs[name]).abs().max() / theirs[name].abs().max()) < 1e-4
    assert words.startswith("UNet2DModel, exactly") == name.startswith("wide")


@pytest.mark.parametrize("name", CASES)
def test_loaded_again_it_is_the_run(exported, name):
    """The same outputs bit for bit, but for the class whose time embedding is turned; data, price
    and hash of config too."""
    run, folder, words = exported[name]
    again = load_pretrained(folder)
    noise, label, _ = start(run.spec.num_classes)
    for t in (0.3, 0.777, 1.0):
        t = torch.tensor(t, dtype=torch.float64)
        for c in (Condition(label), UNCONDITIONED):
            ours, theirs = (r.model.denoised(noise, t, c).x0 for r in (run, again))
            if words.startswith("UNet2DModel"):
                torch.testing.assert_close(
                    ours, theirs, rtol=1e-4, atol=1e-4 * float(ours.abs().max())
                )
            else:
                assert torch.equal(ours, theirs) and again.spec == run.spec
    for field in (
        "name",
        "method",
        "data",
        "ema",
        "config_sha256",
        "train_images",
        "train_evals",
        "train_seconds",
    ):
        assert getattr(again, field) == getattr(run, field)
    assert again.spec.num_classes == run.spec.num_classes
    assert again.spec.codec == run.spec.codec
    assert torch.equal(again.model.codec.decode(noise), run.model.codec.decode(noise))
    for words in (
        (folder / "README.md").read_text(),
        json.loads((folder / "fast_sampling.json").read_text())["time"],
    ):
        assert "t = (k + 1) / " in words.lower()


def test_an_export_in_latents_is_exported_again(exported, tmp_path):
    run = load_pretrained(exported["latents, flow"][1])
    assert "as it came" in export(run, tmp_path / "out")
    again = load_pretrained(tmp_path / "out")
    assert again.spec == run.spec and again.model.codec.sha256 == run.model.codec.sha256
    (tmp_path / "out" / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=r"vae/config.json is missing"):
        load_pretrained(tmp_path / "out")


def test_published_checkpoints_go_straight_back(tmp_path):
    """Byte for byte: weights and scheduler; and once more from the export."""
    folder = save_checkpoint(
        tmp_path / "published",
        scheduler_config={"beta_schedule": "scaled_linear", "clip_sample": False},
    )
    run = load_pretrained(folder)
    assert "as it came" in export(run, tmp_path / "out")
    for file in (
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "model_index.json",
    ):
        assert (folder / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    again = load_pretrained(tmp_path / "out")
    assert again.spec == run.spec and again.weights_sha256 == run.weights_sha256
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.unet.config.block_out_channels == [8, 16]


def test_last_class_of_a_student_is_no_null_label(tmp_path):
    """A published network of 4 classes without a null label: its student's pipeline draws all four,
    and refuses guidance."""
    network = DiffusersConfig(
        class_name="UNet2DModel", config=UNET | {"num_class_embeds": 4}, steps=TABLE.steps
    )
    run = run_of(tmp_path / "student", network, TABLE, "eps", 4, None)
    assert export(run, tmp_path / "out") == "UNet2DModel"
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    seen, forward = [], pipe.unet.forward
    pipe.unet.forward = lambda *given, class_labels, **more: (
        seen.append(class_labels) or forward(*given, class_labels=class_labels, **more)
    )
    pipe(batch_size=6, num_inference_steps=1, output_type="raw")
    assert [label.tolist() for label in seen] == [[0, 1, 2, 3, 0, 1]]
    with pytest.raises(ValueError, match="guidance needs a null label"):
        pipe(batch_size=6, num_inference_steps=1, guidance_scale=2.0)
    assert load_pretrained(tmp_path / "out").spec.num_classes == 4


def test_half_precision_keeps_times_apart(exported):
    """bfloat16 rounds t = 0.999 to 1."""
    _, folder, _ = exported["patches, classes, v on cosine"]
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.bfloat16, trust_remote_code=True
    )
    times, inner = [], pipe.unet.unet.forward
    pipe.unet.unet.forward = lambda x, t, *rest: times.append(t) or inner(x, t, *rest)
    for k in (997, 998):
        assert (
            pipe.unet(torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16), k).sample.dtype
            == torch.bfloat16
        )
    assert [t[0].item() for t in times] == pytest.approx([0.998, 0.999], abs=1e-6)


def test_only_what_was_promised_of_these_weights_is_passed_on(tmp_path):
    run = run_of(tmp_path / "run", SMALL, "vp-cosine", "v", 0, None)
    rows = [
        {"steps": 1, "weights_sha256": run.weights_sha256},
        {"steps": 4, "weights_sha256": "of another number of steps"},
    ]
    (run.folder / "card.json").write_text(json.dumps({"rows": rows}))
    assert export(run, tmp_path / "out").endswith("left out, measured on other weights: 1 of 2")
    (row,) = json.loads((tmp_path / "out" / "card.json").read_text())["rows"]
    assert row == {
        "steps": 1,
        "weights_sha256": load_pretrained(tmp_path / "out").weights_sha256,
    }  # of the file they are in now
    (run.folder / "card.json").write_text(json.dumps({"rows": rows[1:]}))
    export(replace(run, data=DataConfig(name="digits", root="/home/a")), tmp_path / "other")
    assert not (tmp_path / "other" / "card.json").exists()
    assert load_pretrained(tmp_path / "other").data == DataConfig(
        name="digits"
    )  # not where the author has it


def test_labels_and_generators_of_the_pipeline(exported):
    _, folder, _ = exported["patches, classes, v on cosine"]
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    few = {"num_inference_steps": 2, "output_type": "raw"}

    def generators():
        return [torch.Generator().manual_seed(i) for i in (4, 5)]

    listed = pipe(2, class_labels=[3, 1], generator=generators(), **few).images
    tensors = pipe(2, class_labels=torch.tensor([3, 1]), generator=generators(), **few).images
    assert torch.equal(listed, tensors)
    alone = pipe(
        1, class_labels=[3], generator=torch.Generator().manual_seed(4), **few
    ).images  # each image has its own
    torch.testing.assert_close(alone, listed[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"class_labels are \[2\] for 4 images"):
        pipe(4, class_labels=[3, 1], **few)
    for count, noise in ((4, None), (1, torch.zeros(3, 1, 8, 8))):
        with pytest.raises(
            ValueError, match=f"2 generators for {3 if count == 1 else 4} images: give one for each"
        ):
            pipe(count, generator=generators(), noise=noise, **few)
    _, folder, _ = exported["eps on linear"]
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="knows no classes: leave class_labels out"):
        pipe(2, class_labels=[3, 1], **few)


def test_weights_in_the_middle_of_a_stage_are_no_student(tmp_path):
    run = run_of(tmp_path / "run", SMALL, "vp-cosine", "v", 0, None)
    for steps in (4, 16):
        kept = run.folder / "for-steps" / f"{steps:04d}"
        kept.mkdir(parents=True)
        (kept / "ema.safetensors").write_bytes(b"another network")
    with pytest.raises(UserError, match="in the middle of a stage: give --steps, there are 4, 16"):
        export(run, tmp_path / "out")
    (kept / "ema.safetensors").write_bytes(run.weights_file.read_bytes())
    export(run, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "fast_sampling.json").read_text())["steps"] == 16
    words = (tmp_path / "out" / "README.md").read_text()
    assert "16 does not divide 1000" in words and "num_inference_steps=16" in words


def test_refusals(tmp_path):
    dit = DiffusersConfig(class_name="DiTTransformer2DModel", config=DIT, steps=TABLE.steps)
    with pytest.raises(UserError, match="DiTTransformer2DModel are not exported"):
        export(run_of(tmp_path / "dit", dit, TABLE, "eps", 10, None), tmp_path / "out")
    folder = save_checkpoint(tmp_path / "published")
    run = load_pretrained(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="full exists and is not empty"):
        export(run, tmp_path / "full")
    eps_flow = run_of(tmp_path / "flow", SMALL, "rectified", "eps", 0, None)
    with pytest.raises(UserError, match="cannot be exported: prediction eps has no x0"):
        export(eps_flow, tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


@pytest.mark.parametrize(
    "place", ["README.md", "scheduler/scheduler_config.json", "fast_sampling.json"]
)
def test_links_out_of_a_checkpoint_are_not_followed(tmp_path, place):
    """A checkpoint from anywhere must not make an export publish another file of the disk. Those of
    the hub's cache are links, and are."""
    cache = tmp_path / "models--owner--tiny"
    folder = save_checkpoint(cache / "snapshots" / "abc")
    (folder / "README.md").write_text("a card")
    (folder / "fast_sampling.json").write_text("{}")
    (cache / "blobs").mkdir()
    file = folder / place
    for target, works in ((cache / "blobs" / "123", True), (tmp_path / "secret", False)):
        target.write_bytes(file.read_bytes())
        file.unlink()
        file.symlink_to(target)
        run = load_pretrained(folder)
        if works:
            export(run, tmp_path / "out")
            assert (tmp_path / "out" / place).read_bytes() == target.read_bytes()
            assert not (tmp_path / "out" / place).is_symlink()
        else:
            with pytest.raises(UserError, match=f"{place} is a link out of"):
                export(run, tmp_path / "other")
            assert not (tmp_path / "other").exists()
