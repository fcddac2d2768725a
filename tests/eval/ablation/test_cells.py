"""Studies as they are written: which cells they have, in which folders, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from core.errors import UserError
from core.training.snapshots import MOST_OFF, exponent, exponent_of, solve
from eval.ablation.cells import make_cells, trials_of
from eval.ablation.config import base_run, read_study
from scripts.train import resolved
from tests.helpers.study import SWEEP, write_study


def cells(file: Path, *overrides: str) -> list:
    study, values = read_study(file, list(overrides))
    return make_cells(study, values, resolved, str(file))


def test_every_combination_is_a_cell_in_the_order_of_the_axes(tmp_path):
    axes = {
        "optimizer.lr": [1e-3, 2],
        "method.weight": ["simple", "min-snr"],
        "train.accumulate": [1, 2],
    }
    study = write_study(tmp_path, axes=axes)
    found = cells(study)
    assert [c.levels for c in found][:3] == [
        ("0.001", "simple", "1"),
        ("0.001", "simple", "2"),
        ("0.001", "min-snr", "1"),
    ]
    assert len({c.name for c in found}) == 8
    assert found[-1].values["optimizer"]["lr"] == 2
    assert found[-1].values["method"] == {"name": "ddpm", "weight": "min-snr"}


def test_conditions_leave_out_cells(tmp_path):
    axes = {"optimizer.lr": [1e-3, 1e-2, 1e-1], "train.accumulate": [1, 2]}
    left_out = [{"optimizer.lr": [1e-3, 1e-2], "train.accumulate": 2}]
    found = cells(write_study(tmp_path, axes=axes, **{"except": left_out}))
    assert [c.levels for c in found] == [("0.001", "1"), ("0.01", "1"), ("0.1", "1"), ("0.1", "2")]


def test_variants_are_one_axis_and_may_take_sections_away(tmp_path):
    variants = {"plain": {}, "small": {"optimizer.lr": 1e-4, "ema": {"half_life": 10}}}
    study, values = read_study(write_study(tmp_path, axes=None, variants=variants))
    assert study.factors == {"variant": ("plain", "small")}
    plain, small = make_cells(study, values, resolved, "x")
    assert plain.values == values and small.values["optimizer"]["lr"] == 1e-4
    assert small.values["ema"] == {"half_life": 10}


def test_a_cell_goes_by_what_it_trains(tmp_path):
    """Names do not depend on folders, logs, seeds or the study; they do on all else. Numbers that
    are equal are one."""
    one = [c.name for c in cells(write_study(tmp_path / "a"))]
    other = write_study(tmp_path / "b", name="other", seeds=[5, 6], log={"samples": 3})
    assert [c.name for c in cells(other, "run=elsewhere", "train.seed=9")] == one
    assert [c.name for c in cells(other, "optimizer.lr=77")] == one  # the axis decides
    assert not set(one) & {c.name for c in cells(other, "budget.images=193")}
    assert all(re.fullmatch(r"ddpm-[0-9a-f]{10}", name) for name in one)
    written = write_study(tmp_path / "c", axes={"optimizer.lr": [0.001, 0.01]})
    assert [c.name for c in cells(written)] == one


def test_trials_have_folders_seeds_and_noise_of_their_own(tmp_path):
    file = write_study(tmp_path, seeds=[3, 4])
    study, values = read_study(file, ["sweep.seed=100"])
    made = make_cells(study, values, resolved, str(file))
    trials = trials_of(study, made, Path("runs/digits"), Path("out"))
    assert [t.folder.name for t in trials[:2]] == [f"{c.name}-seed3" for c in made]
    assert [t.sweep.seed for t in trials] == [103, 103, 104, 104]
    assert trials[3].values["train"]["seed"] == 4
    assert trials[3].values["run"] == f"runs/digits/ablations/{made[1].name}-seed4"
    assert trials[3].sweep.out == f"{trials[3].values['run']}/curves.jsonl"
    assert not trials[0].sweep.floor and trials[0].sweep.entries[0].steps == (1, 2)


def test_overrides_reach_the_study_and_its_runs(tmp_path):
    file = write_study(tmp_path)
    study, values = read_study(
        file, ["axes.optimizer.lr=[1,2,3]", "seeds=[7]", "budget.images=64", "sweep.n=40"]
    )
    assert study.axes == {"optimizer.lr": (1, 2, 3)} and study.seeds == (7,)
    assert values["budget"] == {"images": 64} and study.sweep.n == 40


def test_a_study_may_be_based_on_a_study(tmp_path):
    first = write_study(tmp_path)
    second = first.with_name("second.yaml")
    second.write_text("base: study.yaml\nseeds: [1, 2]\n")
    assert read_study(second)[0].seeds == (1, 2)
    assert base_run(second).resolve() == (tmp_path / "configs/digits/tiny.yaml").resolve()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axess": {}}, r"unknown key 'axess' \(did you mean 'axes'\?\)"),
        ({"question": " "}, "question is empty"),
        ({"question": None}, "key 'question' is missing"),
        ({"seeds": []}, "seeds: at least one"),
        ({"seeds": [1, 1]}, "seeds: at least one, each once"),
        ({"seeds": [2**32]}, "seeds.0: Input should be less than 4294967296"),
        ({"seeds": [1], "sweep": SWEEP | {"seed": 2**32 - 1}}, "the sum must be below 2.32"),
        ({"sweep": SWEEP | {"keep_samples": -1}}, "keep_samples: Input should be greater than"),
        (
            {"axes": {f"method.x{i}": list(range(30)) for i in range(6)}},
            "729,000,000 trainings: at most 10,000 in a study",
        ),
        ({"axes": None}, "exactly one of axes and variants"),
        ({"variants": {"a": {}, "b": {}}}, "exactly one of axes and variants"),
        ({"axes": {"optimizer.lr": [1]}}, "needs at least two values"),
        ({"axes": {"optimizer.lr": [1, 1.0]}}, "needs at least two values, each once"),
        ({"axes": {"train.seed": [1, 2]}}, "an axis may not be train.seed: give seeds"),
        ({"axes": {"log.samples": [1, 2]}}, "an axis may not be log.samples, which changes nothing"),
        ({"axes": {"optimizer.lrr": [1, 2]}}, r"unknown key 'optimizer.lrr' \(did you mean 'lr'"),
        ({"except": [{"optimizer.l": 1}]}, r"'optimizer.l' is no axis \(did you mean"),
        ({"except": [{"optimizer.lr": 7}]}, "except: no cell is"),
        ({"except": [{"optimizer.lr": 0.01}]}, "except leaves 1 of 2 cells"),
        ({"sweep": {"n": 30, "extractor": "digits-cnn", "step": [1]}}, "unknown key 'sweep.step'"),
        ({"sweep": {"n": 3, "extractor": "digits-cnn"}}, "sweep.n: Input should be greater than or equal to 4, got 3"),
        ({"base": "../digits/tinny.yaml"}, "tinny.yaml does not exist .did you mean 'tiny.yaml'"),
    ],
)  # fmt: skip
def test_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        cells(write_study(tmp_path, **changes))


def test_cells_that_are_the_same_are_refused(tmp_path):
    variants = {"plain": {}, "also": {"optimizer.lr": 1e-3}}
    with pytest.raises(UserError, match="plain and also are the same config"):
        cells(write_study(tmp_path, axes=None, variants=variants))


def test_an_impossible_cell_says_why_and_the_others_go_on(tmp_path):
    one, two = cells(write_study(tmp_path, axes={"ema.half_life": [320, 0]}))
    assert one.problem is None and two.name is None
    assert "ema.half_life: Input should be greater than 0" in two.problem


STUDIES = sorted((Path(__file__).resolve().parents[3] / "configs" / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_shipped_studies_can_be_run(file):
    """Every cell is possible, and with enough seeds for a claim, but where a cell takes an hour."""
    found = cells(file)
    assert len(found) >= 2 and not any(cell.problem for cell in found)
    assert len(read_study(file)[0].seeds) >= (1 if file.stem.startswith("fashion_mnist") else 3)
    assert yaml.safe_load(file.read_text())["question"].endswith("?")


def test_half_lives_of_shipped_studies_can_be_put_together():
    """Of the images that the cells are trained on, as far as the config says so."""
    (file,) = (file for file in STUDIES if file.stem == "digits_half_life")
    found, gamma = cells(file), [exponent(width) for width in (0.05, 0.1)]
    images, every = found[0].values["budget"]["images"], found[0].values["snapshots"]["every"]
    t = np.repeat(np.append(np.arange(every, images, every), images) / images, 2)
    half_lives = [float(c.levels[0].split()[1]) for c in found if " " in c.levels[0]]
    assert len(half_lives) == 4
    for half_life in half_lives:
        wanted = exponent_of(half_life / images)
        assert solve(t, np.tile(gamma, len(t) // 2), 1.0, wanted)[1] < MOST_OFF / 2
