"""What a sweep will measure, known ahead of it: every setting once, every network loaded once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import lab
from core.config import parse
from core.errors import UserError
from core.setting import Setting
from eval.curves_file import read_rows
from eval.sweep.config import SweepEntry
from eval.sweep.plan import plan
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
    assert [row.pop("train_seed") for row in found][1:3] == [None, None]  # they did not say
    expected = comparable(uninterrupted)
    for row in expected:
        del row["train_seed"]
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
