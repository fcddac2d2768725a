"""What does not fit is refused in one line that names the file, the key and its value; nothing is
guessed or repaired."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from core.errors import UserError
from lab import load
from teachers.diffusers_format import read
from teachers.diffusers_format.read import is_hub_id, load_pretrained

diffusers = pytest.importorskip("diffusers")
from tests.helpers.checkpoints import rewrite, save_checkpoint

INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        (
            INDEX,
            {"vae": ["diffusers", "AutoencoderKL"]},
            ["vae = 'AutoencoderKL'", "latent pipeline"],
        ),
        (INDEX, {"vqvae": ["diffusers", "VQModel"]}, ["vqvae = 'VQModel'", "latent pipeline"]),
        (
            INDEX,
            {"text_encoder": ["transformers", "CLIPTextModel"]},
            ["text_encoder = 'CLIPTextModel'", "class labels"],
        ),
        (INDEX, {"mask": ["diffusers", "Mask"]}, ["mask = 'Mask'", "a network and a scheduler"]),
        (INDEX, {"unet": None}, ["key 'unet' is missing"]),
        (UNET, {"out_channels": 2}, ["out_channels = 2", "learned variance"]),
        (UNET, {"out_channels": 3}, ["out_channels = 3", "in_channels is 1"]),
        (
            UNET,
            {"_class_name": "UNet2DConditionModel"},
            ["_class_name = 'UNet2DConditionModel'", "UNet2DModel"],
        ),
        (UNET, {"sample_size": [8, 16]}, ["sample_size = [8, 16]", "square"]),
        (UNET, {"sample_size": None}, ["sample_size = None", "square"]),
        (UNET, {"sample_size": 7}, ["sample_size = 7", "a multiple of 2"]),
        (
            UNET,
            {"in_channels": "three"},
            ["in_channels = 'three'", "number of the images' channels"],
        ),
        (UNET, {"time_embedding_type": "fourier"}, ["time_embedding_type = 'fourier'"]),
        (
            UNET,
            {"class_embed_type": "timestep", "num_class_embeds": 4},
            ["class_embed_type = 'timestep'"],
        ),
        (
            UNET,
            {"block_out_channels": [8, 8]},
            ["safetensors does not fit", "unexpected tensor 'down_blocks.1.resnets.0.conv_sh"],
        ),
        (UNET, {"layers_per_block": 2}, ["safetensors does not fit", "missing tensor"]),
        (
            UNET,
            {"block_out_channels": [8, 24]},
            ["safetensors does not fit", "mismatched tensor 'down_blocks.1"],
        ),
        (UNET, {"act_fn": "nonsense"}, ["network.config is not one of UNet2DModel"]),
        (
            SCHEDULER,
            {"variance_type": "learned_range"},
            ["variance_type = 'learned_range'", "would be ignored"],
        ),
        (
            SCHEDULER,
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            ["_class_name = 'FlowMatch", "not flow matching"],
        ),
        (
            SCHEDULER,
            {"_class_name": "EDMDPMSolverMultistepScheduler"},
            ["_class_name = 'EDM", "not flow matching, EDM"],
        ),
        (
            SCHEDULER,
            {"_class_name": "ScoreSdeVeScheduler"},
            ["_class_name = 'ScoreSdeVe", "variance-exploding"],
        ),
        (
            SCHEDULER,
            {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
            ["flow matching"],
        ),
        (
            SCHEDULER,
            {"prediction_type": "flow_prediction"},
            ["prediction_type = 'flow_prediction'"],
        ),
        (
            SCHEDULER,
            {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
            ["timestep_type = 'continuous'", "EDM"],
        ),
        (
            SCHEDULER,
            {"prediction_type": "noise"},
            ["prediction_type = 'noise'", "epsilon, sample, v_prediction"],
        ),
        (
            SCHEDULER,
            {"prediction_type": None, "predict_epsilon": False},
            ["predict_epsilon = False", "sample"],
        ),
        (SCHEDULER, {"beta_schedule": "cubic"}, ["beta_schedule = 'cubic'", "scaled_linear"]),
        (SCHEDULER, {"beta_end": 1.2}, ["beta_schedule = 'linear'", "every beta"]),
        (SCHEDULER, {"trained_betas": "linear"}, ["trained_betas = 'linear'", "a list of numbers"]),
        (
            SCHEDULER,
            {"num_train_timesteps": "many"},
            ["num_train_timesteps = 'many'", "must be a number", "1000"],
        ),
        (SCHEDULER, {"clip_sample_range": []}, ["clip_sample_range = []", "must be a number"]),
        (
            SCHEDULER,
            {"trained_betas": [0.1, 0.2]},
            ["trained_betas = '[2 numbers]'", "2 betas for steps = 1000"],
        ),
        (
            SCHEDULER,
            {"rescale_betas_zero_snr": True},
            ["rescale_betas_zero_snr = True", "prediction_type must be v_prediction"],
        ),
    ],
)
def test_values_that_do_not_fit(folder, file, values, words):
    rewrite(folder / file, **values)
    refused(folder, *words, *([] if "network.config" in words[0] else [str(folder / file)]))


def test_a_network_that_is_no_square(folder):
    rewrite(folder / UNET, sample_size=[8, 8])
    assert load_pretrained(folder).spec.side == 8


@pytest.mark.parametrize(
    "file", [INDEX, UNET, SCHEDULER, "unet/diffusion_pytorch_model.safetensors"]
)
def test_missing_and_damaged_files(folder, file):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    refused(folder, str(folder / file), "fetch the checkpoint again")
    (folder / file).unlink()
    refused(folder, str(folder / file), "is missing")


def test_raw_weights_are_not_published(folder):
    with pytest.raises(UserError, match="one set of weights, as published"):
        load_pretrained(folder, "raw")


def test_without_diffusers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(folder, "the package diffusers is not installed (pip install diffusers)")
    with pytest.raises(UserError, match=r"owner/name is no folder here.*pip install diffusers"):
        load("owner/name")


def test_core_and_command_lines_do_not_import_diffusers():
    import subprocess

    code = "import sys, lab, scripts.sample, scripts.evaluate, scripts.teacher; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_only_names_that_are_nothing_local_are_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(Path("google/ddpm-cifar10-32"))
    (tmp_path / "mine").mkdir()
    here = [f"{folder}/teacher" for folder in ("runs", "results", "teachers", "configs", "data")]
    for other in (
        *here,
        "mine/teachr",
        "runs",
        "a/b/c",
        "../a",
        "/a/b",
        "a b/c",
        str(tmp_path / "x"),
    ):
        assert not is_hub_id(Path(other)), other


def test_the_old_error_where_nothing_is_recognised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    (tmp_path / "runs" / "teacher" / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"runs/teachr is not a run.*did you mean 'teacher'"):
        load("runs/teachr")


@pytest.mark.parametrize(
    "name", ["runs/teacher", "./owner/name", "../owner/name", "~/name", "/a/b"]
)
def test_paths_are_not_looked_up_on_the_hub(name, tmp_path, monkeypatch):
    """In a folder without runs/, too."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail())
    with pytest.raises(UserError, match="is not a run: it has no config.yaml"):
        load(name)


class Hub:
    """snapshot_download of a hub that has one repository; notes what it was asked for."""

    def __init__(self, source: Path, cache: Path):
        self.source, self.cache, self.asked = source, cache / "snapshots" / "abc123", []

    def __call__(self, repo_id: str, allow_patterns: list[str]) -> str:
        from fnmatch import fnmatch

        if repo_id != "owner/tiny":
            raise OSError("404 Client Error: Repository Not Found\nmore lines")
        self.asked.append(allow_patterns)
        for file in self.source.rglob("*"):
            name = file.relative_to(self.source).as_posix()
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, self.cache / name)
        return str(self.cache)


def test_a_hub_id(whole, tmp_path, monkeypatch):
    """Configs first, then one file of weights; fields name the id, not the cache."""
    hub = Hub(whole, tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    monkeypatch.chdir(tmp_path)
    run = load("owner/tiny")
    assert hub.asked == [["*.json", "README.md"], ["unet/diffusion_pytorch_model.safetensors"]]
    assert (run.name, str(run.folder)) == ("tiny", "owner/tiny")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(0.5)
    assert torch.equal(run.model.output(x, t), load_pretrained(whole).model.output(x, t))
    from teachers.diffusers_format.describe import describe

    assert "revision abc123" in describe(run)["origin"]
    with pytest.raises(
        UserError,
        match=r"owner/other is no run or folder here.*Repository Not Found\).*check the name",
    ) as caught:
        load("owner/other")
    assert "\n" not in str(caught.value)


def test_a_hub_id_that_does_not_fit_is_refused_before_its_weights(folder, tmp_path, monkeypatch):
    rewrite(folder / INDEX, vae=["diffusers", "AutoencoderKL"])
    hub = Hub(folder, tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="latent pipeline"):
        load("owner/tiny")
    assert len(hub.asked) == 1


def test_it_says_once_how_it_was_published(folder, capsys):
    rewrite(folder / SCHEDULER, variance_type="fixed_large", clip_sample_range=2.0)
    read._noted.clear()
    load_pretrained(folder)
    load_pretrained(folder)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--sampler ddpm-large --grid leading --threshold none" in said
    assert "clip_sample_range = 2" in said
