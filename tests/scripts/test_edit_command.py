"""scripts.edit on a tiny teacher: what the panels hold, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lab
from core.setting import Setting
from scripts.edit_panels import HIDDEN, mask_of
from tests.helpers.command_lines import refused, run_script
from tests.helpers.tiny import train_tiny

SCALE, SIDE = 8, 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    method = {"label_dropout": 0.1}
    train_tiny(folder / "teacher", images=640, method=method)
    train_tiny(folder / "plain", images=128, network={"conditional": False})
    return folder


def panel(runs: Path, *arguments: str, run: str = "teacher") -> np.ndarray:
    """The picture that the command wrote, in the images' own pixels: [rows, columns, 8, 8]."""
    out = runs / "out.png"
    code, errors = run_script("edit", arguments[0], runs / run, *arguments[1:], "--out", out)
    assert code == 0, errors
    pixels = np.asarray(Image.open(out))[::SCALE, ::SCALE]
    rows, columns = ((size + 1) // (SIDE + 1) for size in pixels.shape)
    gaps = np.array([[pixels[9 * r : 9 * r + 8, 9 * c : 9 * c + 8] for c in range(columns)]
                     for r in range(rows)])  # fmt: skip
    return gaps


def images(runs: Path, *numbers: int) -> np.ndarray:
    data = lab.load(runs / "teacher").data.load("test")
    return data.images[list(numbers)].numpy()[:, 0]


def test_encoding_shows_the_image_its_noise_and_the_way_back(runs, capsys):
    few, many = (
        panel(runs, "encode", "--images", "3,5", "--sampler", "heun", "--steps", str(steps))
        for steps in (2, 24)
    )
    said = [float(line.split(": ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert many.shape[:2] == (2, 3) and (many[:, 0] == images(runs, 3, 5)).all()
    for made, words in zip((few, many), said, strict=True):
        gap = np.sqrt(np.square(made[:, 2].astype(float) - made[:, 0]).mean())
        assert words == pytest.approx(gap, abs=0.01)
    assert said[1] < 0.3 * said[0]
    other = panel(runs, "encode", "--images", "3,5", "--steps", "4", "--to-label", "0")
    assert other.shape[:2] == (2, 4)


def test_interpolation_begins_and_ends_at_what_is_given(runs):
    sampler = ("--sampler", "rk4", "--steps", "12")
    made = panel(runs, "interpolate", "--images", "0,1,2,3", "--count", "5", *sampler)
    assert made.shape[:2] == (2, 7)
    assert (made[:, 0] == images(runs, 0, 2)).all() and (made[:, -1] == images(runs, 1, 3)).all()
    gaps = (
        np.abs(made[:, 1].astype(int) - made[:, 0]),
        np.abs(made[:, -2].astype(int) - made[:, -1]),
    )
    assert max(gap.mean() for gap in gaps) < 4
    drawn = panel(
        runs, "interpolate", "--count", "3", "--rows", "2", "--steps", "2", "--label", "1"
    )
    ends = lab.sample(lab.load(runs / "teacher"),
                      Setting(sampler="ddim", steps=2), n=4, label=1)[:, 0].numpy()  # fmt: skip
    assert (drawn[:, 0] == ends[0::2]).all() and (drawn[:, -1] == ends[1::2]).all()


def test_variation_goes_from_the_image_to_a_sample(runs):
    made = panel(
        runs, "vary", "--images", "0,1", "--label", "3", "--steps", "4", "--times", "0,0.5,1"
    )
    assert made.shape[:2] == (2, 4) and (made[:, 1] == images(runs, 0, 1)).all()
    run, setting = lab.load(runs / "teacher"), Setting(sampler="ddim", steps=4)
    assert (made[:, 3] == lab.sample(run, setting, n=2, label=3)[:, 0].numpy()).all()


@pytest.mark.parametrize("hide", HIDDEN)
def test_inpainting_keeps_what_is_shown(runs, hide):
    options = ("--images", "0,1", "--steps", "3", "--resample", "2", "--variants", "2")
    made = panel(runs, "inpaint", *options, "--hide", hide)
    known = mask_of(hide, SIDE)[0].numpy()
    assert made.shape[:2] == (2, 5) and 0.2 < known.mean() < 0.8
    for column in (2, 3, 4):
        assert (made[:, column][:, known] == images(runs, 0, 1)[:, known]).all()
    assert (made[:, 1][:, ~known] == 128).all()
    assert (made[:, 3] != made[:, 4]).any()


def test_a_switch_goes_from_one_class_to_the_other(runs):
    options = ("--labels", "3,8", "--rows", "2", "--steps", "4", "--times", "1,0.5,0")
    made = panel(runs, "switch", *options)
    run, setting = lab.load(runs / "teacher"), Setting(sampler="ddim", steps=4)
    one, two = (lab.sample(run, setting, n=2, label=k)[:, 0].numpy() for k in (3, 8))
    assert (made[:, 0] == one).all() and (made[:, -1] == two).all()
    assert (made[:, 1] == two).all() and (made[:, 3] == one).all()
    assert (made[:, 2] != one).any() and (made[:, 2] != two).any()


@pytest.mark.parametrize(
    "task, arguments, words",
    [
        ("encode", ["--images", "9999"], "no image 9999"),
        ("encode", ["--images", "one"], "--images one"),
        ("encode", ["--sampler", "unipc"], "unipc does not run"),
        ("encode", ["--label", "12"], "--label 12"),
        ("encode", ["--to-label", "12"], "class 12"),
        ("encode", ["--folder", "nowhere"], "nowhere"),
        ("interpolate", ["--images", "1,2,3"], "even number"),
        ("interpolate", ["--count", "0"], "--count"),
        ("interpolate", ["--sampler", "ddpm"], "draws noise of its own"),
        ("vary", ["--times", "0.5,2"], "time 2"),
        ("inpaint", ["--resample", "0"], "--resample"),
        ("switch", ["--labels", "3"], "two classes"),
    ],
)
def test_refusals(runs, task, arguments, words):
    line = refused(runs, "edit", task, runs / "teacher", *arguments, "--out", runs / "new.png")
    assert words in line


def test_models_of_no_classes(runs):
    made = panel(runs, "encode", "--images", "0", "--steps", "3", run="plain")
    assert made.shape[:2] == (1, 3)
    for task, more in (("switch", []), ("encode", ["--to-label", "0"]), ("vary", ["--label", "1"])):
        line = refused(runs, "edit", task, runs / "plain", *more, "--out", runs / "new.png")
        assert "class" in line


def test_pictures_of_a_folder(runs, tmp_path):
    given = (torch.rand(8, 8).numpy() * 255).astype(np.uint8)
    Image.fromarray(given).save(tmp_path / "a.png")
    made = panel(runs, "vary", "--folder", str(tmp_path), "--images", "0", "--times", "0")
    assert (made[0, 0] == given).all() and (made[0, 1] == given).all()
