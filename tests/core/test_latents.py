"""Models in latents: equal to the ones on pixels where the autoencoder changes nothing; encoded
once; moved with their run; and refused where the autoencoder is not theirs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import core.training.trainer
from core.autoencoders import CONFIG, FOLDER, WEIGHTS, open_autoencoder
from core.codec import Latents
from core.counting import count_evals
from core.data import ImageData, ImageSource, load_data
from core.data.encoded import encoded
from core.data.pairs import PairSource
from core.errors import UserError
from core.noise import Noise
from core.pairs import generate_pairs
from core.sampling.sample import expected_nfe, sample_images
from core.setting import Setting
from core.training.config import parse_run_config
from core.training.method import Context, training_data
from core.training.trainer import Trainer
from lab import load, method_class
from tests.helpers.latents import identity, train_autoencoder, train_in_latents
from tests.helpers.runs import weights
from tests.helpers.stopped import Stopped, save_then_stop
from tests.helpers.tiny import tiny_config, train_tiny

CPU = torch.device("cpu")
DDIM = Setting(sampler="ddim", steps=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """An autoencoder, another one, and a teacher in the latents of the first."""
    folder = tmp_path_factory.mktemp("latents")
    train_autoencoder(folder / "autoencoder")
    train_autoencoder(folder / "other", train={"seed": 1})
    train_in_latents(folder / "teacher", folder / "autoencoder")
    return folder


def trained(folder: Path, monkeypatch, codec: Latents | None, name: str = "ddpm", **options):
    values = tiny_config(folder, name, images=256, **options)
    config = parse_run_config(values, method_class(name), "test")
    context = Context(config.data, config.model, 0, CPU, load, folder.parent / "cache")
    context.__dict__["codec"] = codec  # in place of a folder's
    method = method_class(name).from_config(config.method, context)
    monkeypatch.setattr(core.training.trainer, "keep_autoencoder", lambda codec, run: None)
    Trainer(config, method, Accelerator(cpu=True)).run()
    return method


@pytest.mark.parametrize("name, prediction, path", [
    ("ddpm", "v", "vp-cosine"), ("rectified-flow", "u", "rectified"),
])  # fmt: skip
def test_with_an_autoencoder_that_changes_nothing_a_model_is_the_one_on_pixels(
    name, prediction, path, tmp_path, monkeypatch
):
    """To the bit, in training and in sampling."""
    options = {"prediction": prediction, "path": path}
    pixels = trained(tmp_path / "pixels", monkeypatch, None, name, **options)
    latent = trained(tmp_path / "latents", monkeypatch, identity(), name, **options)
    assert latent.source.data.encoded is not None and latent.student.codec is not None
    one, two = weights(tmp_path / "pixels", "ema"), weights(tmp_path / "latents", "ema")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    setting = Setting(sampler="heun", steps=3)
    given = [sample_images(m.student, setting, torch.arange(5)) for m in (pixels, latent)]
    assert given[0].dtype == torch.uint8 and torch.equal(*given)


def _data(flip: bool) -> ImageData:
    data = load_data("digits")
    return replace(data, images=data.images[:40], labels=data.labels[:40], flip=flip)


@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_of_latents_that_are_pixels_is_the_batch_of_pixels(flip, tmp_path):
    data, codec = _data(flip), identity()
    made = encoded(data.images, flip, codec, tmp_path / "file.safetensors", CPU)
    latent = replace(data, codec=codec, encoded=made)
    for positions in (torch.arange(16), torch.arange(35, 90)):
        one, two = (ImageSource(d, 3).draw(positions, CPU) for d in (data, latent))
        assert torch.equal(one.x0, two.x0)
        assert torch.equal(one.condition.label, two.condition.label)


def test_images_are_encoded_once_and_again_where_the_file_is_damaged(tmp_path, capsys):
    data, codec, file = _data(True), identity(), tmp_path / "file.safetensors"
    first = encoded(data.images, True, codec, file, CPU)
    again = encoded(data.images, True, codec, file, CPU)
    assert codec.autoencoder.asked == 80 and all(map(torch.equal, first, again))
    file.write_bytes(file.read_bytes()[:-3])
    mended = encoded(data.images, True, codec, file, CPU)
    assert codec.autoencoder.asked == 160 and all(map(torch.equal, first, mended))
    assert "is damaged; the images are encoded again" in capsys.readouterr().err


def test_latents_are_drawn_from_the_posterior_by_the_address_of_the_sample(runs):
    codec = open_autoencoder(str(runs / "autoencoder"), load)
    data = _data(False)
    made = encoded(data.images, False, codec, runs / "few.safetensors", CPU)
    wide = made._replace(std=torch.full_like(made.std, 0.5))
    index = torch.zeros(4000, dtype=torch.int64)
    drawn = wide.draw(index, None, Noise(0, torch.arange(4000)))
    assert torch.allclose(drawn.mean(0), made.mean[0], atol=0.05)
    assert torch.allclose(drawn.std(0), torch.tensor(0.5), atol=0.05)
    part = wide.draw(index[:7], None, Noise(0, torch.arange(90, 97)))
    assert torch.equal(part, drawn[90:97])


def test_latents_have_variance_one(runs):
    """Of the posterior's samples, over all numbers: what the scale was measured for."""
    context = _context(runs, runs / "autoencoder")
    data = training_data(context)
    drawn = ImageSource(data, 0).draw(torch.arange(len(data)), CPU).x0
    assert drawn.shape[1:] == (2, 4, 4) and abs(float(drawn.std()) - 1) < 0.02


def _context(runs: Path, codec: Path | None, **data) -> Context:
    values = tiny_config("x", data={"codec": codec and str(codec), **data})
    config = parse_run_config(values, method_class("ddpm"), "test")
    return Context(config.data, config.model, 0, CPU, load, runs / ".cache")


def test_latents_are_not_clipped_to_the_range_of_pixels(runs):
    model = load(runs / "teacher").model
    clipped = DDIM.model_copy(update={"threshold": "static"})
    for ask in (lambda: expected_nfe(model, clipped),
                lambda: sample_images(model, clipped, torch.arange(2))):  # fmt: skip
        with pytest.raises(UserError, match="threshold=static clips to the range of pixels"):
            ask()


def test_decoding_is_no_evaluation(runs):
    model = load(runs / "teacher").model
    with count_evals(model.network) as counter:
        sample_images(model, DDIM, torch.arange(5))
    assert counter.forwards == 15


def test_a_run_resumes_in_its_latents_and_not_in_others(runs, tmp_path, monkeypatch):
    own = tmp_path / "codec"
    shutil.copytree(runs / "autoencoder", own)
    train_in_latents(tmp_path / "whole", own)
    original = Trainer.save
    monkeypatch.setattr(Trainer, "save", save_then_stop(1))
    with pytest.raises(Stopped):
        train_in_latents(tmp_path / "run", own)
    monkeypatch.setattr(Trainer, "save", original)
    shutil.rmtree(own)
    shutil.copytree(runs / "other", own)
    with pytest.raises(UserError, match=r"run was begun with another autoencoder \(that in"):
        train_in_latents(tmp_path / "run", own)
    shutil.rmtree(own)
    shutil.copytree(runs / "autoencoder", own)
    train_in_latents(tmp_path / "run", own)
    one, two = weights(tmp_path / "whole", "raw"), weights(tmp_path / "run", "raw")
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_run_is_loaded_where_it_was_moved_to_without_its_autoencoders_own_folder(runs, tmp_path):
    images = sample_images(load(runs / "teacher").model, DDIM, torch.arange(3))
    shutil.copytree(runs / "teacher", tmp_path / "moved")
    hidden = runs / "autoencoder"
    hidden.rename(runs / "hidden")
    try:
        moved = load(tmp_path / "moved")
    finally:
        (runs / "hidden").rename(hidden)
    assert torch.equal(sample_images(moved.model, DDIM, torch.arange(3)), images)
    assert (
        open_autoencoder(str(tmp_path / "moved" / FOLDER), load).sha256 == moved.model.codec.sha256
    )


def test_a_damaged_or_exchanged_autoencoder_of_a_run_is_refused(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "teacher", run)
    file = run / FOLDER / WEIGHTS[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=rf"{file} is damaged"):
        load(run)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 64]))
    with pytest.raises(UserError, match="is not the autoencoder that this run was trained with"):
        load(run)
    file.unlink()
    with pytest.raises(UserError, match=rf"{file} is missing"):
        load(run)
    (run / FOLDER / CONFIG).unlink()
    with pytest.raises(UserError, match=rf"{run / FOLDER / CONFIG} is missing"):
        load(run)


def test_data_that_do_not_fit_the_codec_are_refused(runs):
    with pytest.raises(UserError, match="'checkerboard' is of points, which no autoencoder"):
        training_data(_context(runs, runs / "autoencoder", name="checkerboard"))
    context = _context(runs, runs / "autoencoder")
    codec = context.codec
    with pytest.raises(UserError, match="encodes images of 1 channels, and these have 3"):
        codec.spec.shape(3, 8)
    with pytest.raises(UserError, match="divides the side of images by 2, and these have 9"):
        codec.spec.shape(1, 9)
    three = Latents(codec.spec.model_copy(update={"images": 3}), codec.autoencoder)
    context.__dict__["codec"] = three
    with pytest.raises(UserError, match="encodes images of 3 channels, and these have 1"):
        training_data(context)


def test_what_is_no_finished_autoencoder_is_refused(runs, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=rf"'ddpm', which is no autoencoder: its own is in {runs}"):
        open_autoencoder(str(runs / "teacher"), load)
    monkeypatch.setattr(Trainer, "save", save_then_stop(1))
    with pytest.raises(Stopped):
        train_autoencoder(tmp_path / "begun")
    with pytest.raises(
        UserError, match="is not trained to its end, where its latents are measured"
    ):
        open_autoencoder(str(tmp_path / "begun"), load)


def test_a_student_is_in_its_teachers_latents_and_in_no_others(runs, tmp_path):
    method = {"teacher": str(runs / "teacher"), "steps_start": 2, "steps_end": 4}
    train_tiny(tmp_path / "student", "consistency", method=method, images=128)
    student, teacher = load(tmp_path / "student"), load(runs / "teacher")
    assert student.spec.codec == teacher.spec.codec
    with pytest.raises(UserError, match="is not what .*teacher was trained in: remove data.codec"):
        data = {"codec": str(runs / "other")}
        train_tiny(tmp_path / "wrong", "consistency", method=method, images=128, data=data)


def test_pairs_are_of_latents_and_fit_no_others(runs, tmp_path):
    run = load(runs / "teacher")
    generate_pairs(run, tmp_path / "pairs", 8, "ddim", 2, seed=0)
    pairs = PairSource(tmp_path / "pairs", 0)
    assert pairs.draw(torch.arange(4), CPU).x0.shape == (4, 2, 4, 4)
    pairs.check_fits(run.spec)
    other = open_autoencoder(str(runs / "other"), load)
    with pytest.raises(UserError, match="pairs in the latents of another autoencoder"):
        pairs.check_fits(run.spec.model_copy(update={"codec": other.spec}))
