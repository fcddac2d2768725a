"""How a model is sampled, from the command line: as it is meant to be, apart from what is said."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

import lab
from core.errors import UserError
from core.pictures import save_png, tile
from core.setting import Setting
from eval.curves_file import read_rows
from scripts.setting_options import add_setting_options, chosen_setting, given_settings
from tests.helpers.command_lines import refused, run_script
from tests.helpers.runs import diverge
from tests.helpers.tiny import train_tiny

OWN = Setting(sampler="consistency", steps=2, guidance_scale=3.0, threshold="static")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A teacher, and students that are each sampled in a way of their own."""
    folder = tmp_path_factory.mktemp("runs")
    train_tiny(folder / "teacher", images=320)
    teacher = {"teacher": str(folder / "teacher")}
    given = {"steps_start": 4, "steps_end": 8}
    train_tiny(folder / "consistency", "consistency", images=320, method=teacher | given)
    train_tiny(
        folder / "progressive", "progressive", images=640, method={**teacher, "start_steps": 2}
    )
    train_tiny(folder / "flow", "rectified-flow", path="rectified", prediction="u", images=320)
    return folder


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_setting_options(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((), OWN),
        (("--steps", "4"), OWN.model_copy(update={"steps": 4})),
        (("--guidance-scale", "1.0"), OWN.model_copy(update={"guidance_scale": 1.0})),
        (
            ("--guidance-interval", "0.25,0.75"),
            OWN.model_copy(update={"guidance_interval": (0.25, 0.75)}),
        ),
        (("--guidance-interval", "0,1"), OWN),
        (
            ("--guidance-interval", "0.2,0.8", "--guidance-scale", "1"),
            OWN.model_copy(update={"guidance_scale": 1.0}),
        ),
        (("--threshold", "none"), OWN.model_copy(update={"threshold": "none"})),
        (("--grid", "karras"), OWN.model_copy(update={"grid": "karras"})),
        # another sampler, or the same by name, begins with everything off
        (("--sampler", "heun"), Setting(sampler="heun", steps=2)),
        (("--sampler", "consistency"), Setting(sampler="consistency", steps=2)),
        (
            ("--sampler", "ddim", "--steps", "8", "--option", "eta=0.5"),
            Setting(sampler="ddim", steps=8, options={"eta": 0.5}),
        ),
    ],
)
def test_what_is_left_out_is_the_models_own(arguments, expected):
    assert chosen_setting(parsed(*arguments), OWN) == expected


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--steps", "two"), "--steps two: give numbers"),
        (("--steps", "0"), "greater than or equal to 1"),
        (("--steps", "1,2"), "give one of each"),
        (("--option", "eta"), "--option eta: give NAME=NUMBER"),
        (("--option", "eta=big"), "--option eta big: give numbers"),
        (("--option", "eta=nan"), "options.eta"),
        (("--sampler", "jump"), "it is called 'consistency' now"),
        (("--threshold", "harsh"), "threshold"),
        (("--guidance-interval", "0.8,0.2"), "guidance_interval"),
        (("--guidance-interval", "0.8"), "guidance_interval"),
        (("--guidance-interval", "0,1000"), "guidance_interval"),
        (("--guidance-scale", "inf"), "guidance_scales"),
    ],
)
def test_mistakes_are_named(arguments, says):
    with pytest.raises(UserError) as refusal:
        chosen_setting(parsed(*arguments), OWN)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_nothing_given_says_nothing():
    assert given_settings(parsed()) == {}


@pytest.mark.parametrize(
    "name, sampler", [("consistency", "consistency"), ("flow", "euler"), ("teacher", "ddim")]
)
def test_sampling_without_a_word_does_the_right_thing(runs, tmp_path, name, sampler):
    """From the command line, in Python, and by the sampler's function called by its name."""
    out = tmp_path / "x.png"
    code, errors = run_script("sample", runs / name, "--out", out, "--count", 9)
    assert code == 0, errors
    run = lab.load(runs / name)
    steps = run.spec.setting.steps
    images = lab.sample(run, Setting(sampler=sampler, steps=steps), n=9)
    assert torch.equal(images, lab.sample(run.model, n=9))
    save_png(tile(images, columns=3), tmp_path / "expected.png", scale=8)
    assert out.read_bytes() == (tmp_path / "expected.png").read_bytes()
    code, errors = run_script(
        "evaluate", "--run", runs / name, "--n", 30, "--extractor", "digits-cnn",
        "--out", tmp_path / "c.jsonl", "floor=false", f"cache={runs / 'cache'}", "device=cpu",
    )  # fmt: skip
    assert code == 0, errors
    (row,) = read_rows(tmp_path / "c.jsonl")
    assert (row.sampler, row.steps) == (sampler, steps)


def test_options_change_the_samples_and_are_published(runs, tmp_path):
    """eta of ddim: at 1 it is ancestral sampling, of which ddpm is the name."""
    given = ("--run", runs / "teacher", "--n", 30, "--extractor", "digits-cnn", "--steps", 4)
    given += ("--out", tmp_path / "c.jsonl", "floor=false", f"cache={runs / 'cache'}", "device=cpu")
    for more in ((), ("--option", "eta=1.0"), ("--sampler", "ddpm"), ("--option", "eta=0")):
        named = () if "--sampler" in more else ("--sampler", "ddim")
        code, errors = run_script("evaluate", *given, *named, *more)
        assert code == 0, errors
    plain, noisy, ancestral = read_rows(tmp_path / "c.jsonl")  # eta = 0 is no other setting
    assert (plain.options, noisy.options) == ({}, {"eta": 1.0})
    assert noisy.fid == pytest.approx(ancestral.fid, rel=1e-6) != plain.fid
    assert len({row.samples for row in (plain, noisy, ancestral)}) == 3


def test_labels_and_seeds_in_python(runs):
    run = lab.load(runs / "teacher")
    images = lab.sample(run, n=10, seed=3)
    assert images.shape == (10, 1, 8, 8) and images.dtype == torch.uint8
    assert torch.equal(images, lab.sample(run, n=10, seed=3, batch_size=4))
    assert not torch.equal(images, lab.sample(run, n=10, seed=4))
    seven = lab.sample(run, n=8, seed=3, label=7)
    assert torch.equal(seven[7], images[7]) and not torch.equal(seven[0], images[0])


def test_diverged_weights_are_not_drawn(runs, tmp_path):
    """NaN would be drawn as black pictures: the command stops with one line and writes nothing."""
    train_tiny(tmp_path / "run", images=64)
    diverge(tmp_path / "run")
    said = refused(tmp_path, "sample", tmp_path / "run", "--out", tmp_path / "x.png", "--steps", 3)
    assert "ddim, 3 steps" in said and "NaN or infinite images" in said
    with pytest.raises(UserError, match="NaN or infinite images"):
        lab.sample(lab.load(tmp_path / "run"), n=2)
