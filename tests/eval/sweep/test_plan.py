"""What a sweep will measure, known ahead of it: every setting once, every network loaded once."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lab
from core.config import parse
from core.errors import UserError
from core.runs import Run
from core.setting import Setting
from eval.curves_file import read_rows
from eval.features.extractors import make_extractor
from eval.rows import parse_row
from eval.sweep.config import SweepEntry
from eval.sweep.plan import measurement, plan
from eval.sweep.run import run_sweep
from lab import measure
from tests.helpers.small_sweep import comparable, config
from tests.helpers.tiny import train_tiny

OWN = Setting(sampler="consistency", steps=2, guidance_scale=3.0, grid="karras")


def settings(own: Setting = OWN, **entry) -> list[Setting]:
    return parse(SweepEntry, {"run": "x", **entry}, "test").settings(own)


def test_an_entry_without_samplers_means_the_models_own_setting():
    assert settings() == [OWN]
    assert settings(steps=[1, 4]) == [OWN.model_copy(update={"steps": k}) for k in (1, 4)]
    off = OWN.model_copy(update={"guidance_scale": 1.0, "threshold": "static"})
    assert settings(guidance_scales=[1.0], threshold="static") == [off]


def test_a_named_sampler_begins_with_everything_off():
    assert settings(samplers=["ddim"]) == [Setting(sampler="ddim", steps=2)]
    found = settings(
        samplers=["ddim", "heun"], steps=[1, 3], guidance_scales=[1.0, 2.0], grid="lam",
        options={"eta": 0.0},
    )  # fmt: skip
    assert [(s.sampler, s.guidance_scale, s.steps, s.grid) for s in found] == [
        (sampler, scale, steps, "lam")
        for sampler in ("ddim", "heun")
        for scale in (1.0, 2.0)
        for steps in (1, 3)
    ]
    # a sampler's own grid and default options make no other setting; others keep theirs, to be
    # refused by name
    assert settings(samplers=["ddim"], grid="time", options={"eta": 0.0})[0].key() == (
        settings(samplers=["ddim"])[0].key()
    )
    assert found[-1].options == {"eta": 0.0}


@pytest.mark.parametrize("seen", ["digits-cnn", "digits"])
def test_a_run_is_not_measured_in_what_its_critic_saw(run, tmp_path, seen):
    def load(*arguments) -> Run:
        return replace(lab.load(*arguments), critic_features=("pixels", seen))

    given = config(run, tmp_path / "rows.jsonl", str(tmp_path / "cache"), {"steps": [1]})
    with pytest.raises(UserError, match=rf"{run}.*features of '{seen}'.*in those of 'digits-cnn'"):
        run_sweep(given, load)
    (first, *_) = plan(given, torch.device("cpu"), load)
    draft = measurement(given, first.run.data.load(), make_extractor("digits-cnn"), first).draft
    assert draft.critic_features == ("pixels", seen)
    assert parse_row(draft.model_copy(update={"fid": 1.0}).json_line().encode(), "x") == (
        draft.model_copy(update={"fid": 1.0})
    )


@pytest.fixture(scope="module")
def student(run, tmp_path_factory) -> Path:
    """A progressive run, which keeps a network for 4, for 2 and for 1 step."""
    folder = tmp_path_factory.mktemp("runs") / "student"
    train_tiny(folder, "progressive", method={"teacher": str(run), "start_steps": 4}, images=1280)
    return folder


def test_each_network_is_loaded_once(run, student, cache, tmp_path):
    loads = []

    def load(folder, *rest):
        loads.append(Path(folder).name)
        return lab.load(folder, *rest)

    entries = [
        {"run": str(run), "samplers": ["ddim", "heun", "unipc"], "steps": [1, 2, 3, 4]},
        {"run": str(run), "samplers": ["ddim"], "steps": [8], "guidance_scales": [1.0, 2.0]},
        {"run": str(run), "weights": "raw", "samplers": ["ddim"], "steps": [8]},
        {"run": str(student), "steps": [1, 2, 4]},
    ]
    sweep = config(run, tmp_path / "c.jsonl", cache, entries=entries)
    points = plan(sweep, torch.device("cpu"), load)
    assert loads == ["teacher", "teacher", "student", "student", "student"]
    assert len({id(point.run.model) for point in points}) == 5
    assert [point.nfe for point in points[-5:]] == [16, 8, 1, 2, 4]
    of_steps = {p.setting.steps: p.run.weights_sha256 for p in points if p.run.name == "student"}
    assert of_steps == {k: lab.load(student, steps=k).weights_sha256 for k in (1, 2, 4)}
    assert len(set(of_steps.values())) == 3


def test_a_point_listed_twice_is_measured_once(run, cache, tmp_path, capsys):
    """By name, by default, and with what its sampler does anyway."""
    out, one = tmp_path / "curves.jsonl", {"run": str(run), "steps": [2]}
    entries = [one, {**one, "samplers": ["ddim"]}, {**one, "samplers": ["ddim"], "grid": "time"}]
    rows = measure(config(run, out, cache, entries=entries, floor=False))
    assert len(rows) == len(read_rows(out)) == 1
    entries = [{**one, "samplers": ["ddim"], "options": {"eta": 0.0}}]
    assert measure(config(run, out, cache, entries=entries, floor=False)) == rows


def test_rows_of_earlier_versions_are_found(run, cache, uninterrupted, tmp_path):
    """A sweep that an earlier version began goes on: its rows lack the new keys."""
    out = tmp_path / "curves.jsonl"
    old = re.sub(', "options": .*}', "}", uninterrupted.read_text())
    assert '"sets"' not in old
    out.write_text("".join(old.splitlines(keepends=True)[:3]))
    measure(config(run, out, cache))
    found = comparable(out)
    expected = comparable(uninterrupted)
    for key in ("train_seed", "ema_half_life"):
        assert [row.pop(key) for row in found][1:3] == [None, None]  # they did not say
        for row in expected:
            del row[key]
    assert found == expected


@pytest.mark.parametrize(
    "entry, says",
    [
        ({"grid": "lamb"}, "unknown grid 'lamb' .did you mean 'lam'"),
        ({"options": {"etta": 1.0}}, "sampler ddim has no option 'etta' .did you mean 'eta'"),
        ({"options": {"eta": float("nan")}}, "finite number"),
        ({"samplers": ["jump"]}, "it is called 'consistency' now"),
        ({"steps": []}, "at least 1 item"),
        ({"guidance_scales": [float("inf")]}, "finite number"),
    ],
)
def test_what_cannot_be_sampled_is_refused_ahead(run, cache, tmp_path, entry, says):
    with pytest.raises(UserError, match=says):
        measure(config(run, tmp_path / "new" / "c.jsonl", cache, entry))
    assert not (tmp_path / "new").exists()


def test_training_seeds_are_runs_of_their_own_with_noise_of_their_own(tmp_path):
    """Each as the run of that name alone is measured with that seed of samples; a folder that was
    trained with another seed is refused."""
    for seed in (0, 2):
        train_tiny(tmp_path / f"t{'-seed2' * (seed == 2)}", images=64, train={"seed": seed})
    cache, once = str(tmp_path / "cache"), {"samplers": ["ddim"], "steps": [1]}
    both = config("t", tmp_path / "both.jsonl", cache, once, runs=str(tmp_path), seed=5,
                  seeds=[0, 2], floor=False)  # fmt: skip
    rows = measure(both)
    assert [(r.run, r.train_seed, r.seed) for r in rows] == [("t", 0, 5), ("t-seed2", 2, 7)]
    for row, run, seed in zip(rows, ("t", "t-seed2"), (5, 7), strict=True):
        alone = config(
            tmp_path / run, tmp_path / f"{run}.jsonl", cache, once, seed=seed, floor=False
        )
        (other,) = measure(alone)
        assert other.fid == row.fid and other.key == row.key
    (tmp_path / "t-seed2").rename(tmp_path / "t-seed3")
    wrong = both.model_copy(update={"seeds": (3,)})
    with pytest.raises(UserError, match="t-seed3 was trained with seed 2.* measures it as seed 3"):
        measure(wrong)
    for seeds, says in (([1, 1], "names one twice: 1, 1"), ([2**32 - 1], "below 2.32")):
        with pytest.raises(UserError, match=says):
            config("t", tmp_path / "x.jsonl", cache, seed=5, seeds=seeds)
