"""The whole measurement on a tiny run: rows, what is kept, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import lab
from core.config import parse
from core.errors import UserError
from core.noise import Noise
from eval.likelihood import measure as measuring
from eval.likelihood.bits import dequantised
from eval.likelihood.config import LikelihoodConfig
from eval.likelihood.flow import Integration, log_density
from eval.likelihood.measure import BACK, BOUND, ERROR, FLOW, NORM, USUAL, measure
from tests.helpers.command_lines import run_script
from tests.helpers.pictures import save
from tests.helpers.runs import diverge
from tests.helpers.tiny import train_tiny

FAST = {"density": {"tolerance": 0.05}, "bound": {"steps": 20, "times": 3}, "batch_size": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("likelihood") / "teacher"
    train_tiny(folder, images=64, method={"label_dropout": 0.1})
    return lab.load(folder)


def config(folder, **values) -> LikelihoodConfig:
    return parse(LikelihoodConfig, {"out": str(folder), "n": 12} | FAST | values, "test")


def test_rows_hold_what_was_measured_and_an_interruption_costs_nothing(run, tmp_path, monkeypatch):
    found = measure(config(tmp_path, outliers=True), run)
    rows = [json.loads(x) for x in (tmp_path / "likelihood.jsonl").read_text().splitlines()]
    own = {row["quantity"]: row for row in rows if row["images"] == "test"}
    parts = [f"{BOUND}: {part}" for part in ("prior", "middle", "decoder")]
    assert set(own) == {FLOW, BOUND, *parts, NORM, USUAL, ERROR, BACK}
    assert own[BOUND]["mean"] == pytest.approx(sum(own[part]["mean"] for part in parts))
    assert own[BOUND]["nfe"] == 4
    assert own[FLOW]["evals"] == 2 * own[FLOW]["nfe"]  # a backward beside each forward

    # by hand, on the first batch
    data = run.data.load("test")
    rng = Noise(0, torch.arange(8))
    x = dequantised(run.model.codec, data.images[:8], rng)
    p = log_density(run.model, x, Integration(tolerance=0.05), rng).value
    bits = -(p / 64 - torch.log(torch.tensor(127.5).double())) / torch.log(torch.tensor(2.0))
    values = next(s.values for s in found if s.quantity == FLOW and s.images == "test")
    torch.testing.assert_close(values[:8].double(), bits.double(), rtol=1e-5, atol=1e-5)
    assert own[FLOW]["mean"] == pytest.approx(float(values.mean()))
    assert own[FLOW]["std_error"] == pytest.approx(float(values.std()) / 12**0.5)

    names = {row["images"] for row in rows}
    assert names == {"test", "train", "mirrored", "upside-down", "rotated", "inverted", "noised",
                     "constant", "fashion_mnist"}  # fmt: skip
    assert all((row["auroc"] is None) == (row["images"] == "test") for row in rows)

    # one file lost: it alone is measured again, and everything is as it was
    lost = next((tmp_path / "values").glob("teacher-density-rotated-*"))
    lost.unlink()
    asked = []
    kept = measuring.log_density
    monkeypatch.setattr(
        measuring, "log_density", lambda *a, **k: asked.append(len(a[1])) or kept(*a, **k)
    )
    again = measure(config(tmp_path, outliers=True), run)
    assert asked == [8, 4]
    for one, two in zip(found, again, strict=True):
        assert torch.equal(one.values, two.values)
    # another seed is another measurement
    measure(config(tmp_path, seed=1, bound=None), run)
    assert asked == [8, 4, 8, 4]


def test_more_probes_say_their_error_and_an_exact_trace_has_none(run, tmp_path):
    def row(name: str, **density):
        values = {"tolerance": 0.05, "t_min": 0.05} | density
        found = measure(config(tmp_path / name, bound=None, n=4, density=values), run)
        return found[0].row

    one, four, exact = row("1"), row("4", probes=4), row("exact", trace="exact")
    assert one.trace_error is None and exact.trace_error is None
    assert four.trace_error > 0
    assert four.evals == 5 * four.nfe
    assert exact.evals == 65 * exact.nfe


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([], "out"),
        (["out=x", "label=own", "outliers=true"], "strangers have no class"),
        (["out=x", "density.t_min=1"], "t_min"),
        (["out=x", "bound.times=2000"], "1000 steps has 999 terms"),
        (["out=x", "device=tpu"], "unknown device"),
        (["out=x", "colour=red"], "colour"),
    ],
)
def test_bad_input_is_one_line(run, keys, words):
    code, errors = run_script("scripts.likelihood", str(run.folder), *keys)
    assert code == 2
    assert words in errors and len(errors.strip().splitlines()) == 1


def test_the_command_writes_a_table_and_a_picture(run, tmp_path):
    keys = ["density.tolerance=0.05", "bound=null", "n=4", f"out={tmp_path}"]
    code, errors = run_script("scripts.likelihood", str(run.folder), *keys)
    assert code == 0, errors
    assert "probability flow" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "likelihood.png").read_bytes().startswith(b"\x89PNG")


def test_a_null_label_that_was_never_trained_is_refused(tmp_path):
    train_tiny(tmp_path / "teacher", images=64)
    run = lab.load(tmp_path / "teacher")
    with pytest.raises(UserError, match="never learned its null label"):
        measure(config(tmp_path / "out"), run)
    found = measure(config(tmp_path / "out", label="own", bound=None, n=4), run)
    assert found[0].row.protocol["label"] == "own"


def test_weights_that_have_diverged_are_refused_and_no_row_is_written(tmp_path):
    train_tiny(tmp_path / "teacher", images=64, method={"label_dropout": 0.1})
    diverge(tmp_path / "teacher")
    for changes in ({"bound": None}, {}):
        with pytest.raises(UserError, match="have diverged"):
            measure(config(tmp_path / "out", **changes), lab.load(tmp_path / "teacher"))
    assert not (tmp_path / "out" / "likelihood.jsonl").exists()


def test_places_are_tried_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "log_density", None)
    monkeypatch.setattr(measuring, "variational_bound", None)
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file", "/proc/nothing", "/dev/null"):
        with pytest.raises(UserError, match="could not be written|is no folder"):
            measure(config(place), run)


def test_a_split_of_one_image_has_no_error_bar(tmp_path):
    for i in range(10):
        save(tmp_path / "images" / f"{i}.png", 20 * i)
    data = {"name": "folder", "root": str(tmp_path / "images"), "side": 8}
    train_tiny(tmp_path / "teacher", images=64, data=data)
    with pytest.raises(UserError, match="its test split is too small: 1 images"):
        measure(config(tmp_path / "out"), lab.load(tmp_path / "teacher"))
