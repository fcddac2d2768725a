"""The sweep: right rows, the same rows whatever interrupts it and however many processes share
it."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval.sweep.points
import eval.sweep.run
from core.data import DataConfig, load_data
from core.errors import UserError
from core.processes import start_processes
from core.sampling.sample import sample_images
from core.setting import Setting
from eval.curves_file import append_row, read_rows
from eval.features.extractors import EXTRACTORS, Extractor, make_extractor
from eval.metrics.distances import frechet_distance, statistics
from eval.metrics.extrapolate import fid_infinity
from eval.rows import Row
from eval.sweep.plan import data_of, plan
from lab import load, measure
from tests.helpers.runs import diverge
from tests.helpers.small_sweep import comparable, config
from tests.helpers.tiny import train_tiny


def test_rows_hold_the_protocol_and_the_right_numbers(run, uninterrupted):
    rows = read_rows(uninterrupted)
    assert [(r.method, r.sampler, r.steps, r.nfe) for r in rows] == [
        ("floor", None, None, None),
        ("ddpm", "ddim", 1, 1.0),
        ("ddpm", "ddim", 3, 3.0),
        ("ddpm", "heun", 1, 1.0),
        ("ddpm", "heun", 3, 5.0),
    ]
    row = rows[2]
    asked = (
        "dataset method run teacher sampler steps nfe guidance_scale fid fid_std kid precision recall n extractor "
        "extractor_sha256 reference reference_sha256 ema seed seconds_per_image device train_images train_evals "
        "train_seconds config_sha256 commit metric fid_error grid threshold"
    )
    assert not set(asked.split()) - json.loads(row.json_line()).keys()
    assert (row.metric, row.fid_error, row.ema) == (
        "FD",
        "stratified bootstrap 4",
        "average",
    )
    # 10 steps of 64, whose last decays are 1 - k^(-2/3) for k = 10, 9, 8: 0.785, 0.769 and 0.75
    assert row.ema_half_life == pytest.approx(64 * 2.652, rel=1e-3)
    own = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    assert own / 4 < row.peak_memory_bytes <= own * 1.01
    assert row.seconds_per_image > 0 and sum(row.class_histogram) == 30
    # The number once more, with nothing of the sweep.
    images = sample_images(load(run).model, Setting(sampler="ddim", steps=3), torch.arange(30))
    extractor = make_extractor("digits-cnn")
    train = load_data("digits", "train")
    expected = frechet_distance(statistics(extractor(images)), statistics(extractor(train.images)))
    assert row.fid == pytest.approx(expected, rel=1e-3)
    assert row.reference_sha256 == train.sha256
    strip = np.asarray(Image.open(uninterrupted.parent / row.samples))
    assert (strip == np.concatenate(list(images[:16, 0].numpy()), axis=1)).all()


def test_finished_rows_are_not_measured_again(run, cache, uninterrupted, monkeypatch):
    before = uninterrupted.read_bytes()
    monkeypatch.setattr(eval.sweep.points, "sample_images", None)
    rows = measure(config(run, uninterrupted, cache))
    assert uninterrupted.read_bytes() == before and len(rows) == 5


@pytest.mark.parametrize(
    "torn", [0, 1, 200, -1], ids=["between lines", "one byte", "mid-line", "all but the newline"]
)
def test_killed_and_restarted(run, cache, uninterrupted, tmp_path, monkeypatch, torn):
    out = tmp_path / "curves.jsonl"

    def killed(path: Path, row: Row) -> None:
        if row.sampler != "heun":
            return append_row(path, row)
        with open(path, "ab") as file:
            line = row.json_line().encode() + b"\n"
            file.write(line[:torn])
        raise KeyboardInterrupt

    monkeypatch.setattr(eval.sweep.run, "append_row", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(config(run, out, cache))
    monkeypatch.undo()
    assert len(read_rows(out)) == (4 if torn == -1 else 3)
    measure(config(run, out, cache))
    assert comparable(out) == comparable(uninterrupted)


def test_broken_line_elsewhere_is_named(run, cache, uninterrupted, tmp_path):
    lines = uninterrupted.read_bytes().splitlines(keepends=True)
    out = tmp_path / "curves.jsonl"
    for broken in (b'{"dataset": "dig\n', b'{"dataset": "digits"}\n', b"17\n"):
        content = b"".join([lines[0], broken, *lines[2:]])
        out.write_bytes(content)
        with pytest.raises(UserError, match=r"curves.jsonl, line 2: (not|key)"):
            measure(config(run, out, cache))
        assert out.read_bytes() == content


def test_disjoint_sets_and_guidance(run, cache, tmp_path):
    out = tmp_path / "curves.jsonl"
    entry = {
        "samplers": ["ddim"],
        "steps": [2],
        "guidance_scales": [1.0, 2.0],
        "method": "other",
        "threshold": "static",
    }
    measure(config(run, out, cache, entry, n=20, sets=3, floor=False))
    plain, guided = read_rows(out)
    assert (plain.nfe, guided.nfe) == (2.0, 4.0)
    assert plain.fid_error == "3 sets" and plain.method == "other"
    extractor = make_extractor("digits-cnn")
    reference = statistics(extractor(load_data("digits", "train").images))
    static = Setting(sampler="ddim", steps=2, threshold="static")
    images = sample_images(load(run).model, static, torch.arange(60))
    values = [frechet_distance(statistics(extractor(part)), reference) for part in images.split(20)]
    assert plain.fid == pytest.approx(np.mean(values), rel=1e-3)
    assert plain.fid_std == pytest.approx(np.std(values, ddof=1), rel=1e-2)


def test_extrapolated_row(run, cache, tmp_path):
    out = tmp_path / "curves.jsonl"
    measure(
        config(
            run, out, cache, {"samplers": ["ddim"], "steps": [1]}, n=300, extrapolate=5, floor=False
        )
    )
    (row,) = read_rows(out)
    features = make_extractor("digits-cnn")(
        sample_images(load(run).model, Setting(sampler="ddim", steps=1), torch.arange(300))
    )
    reference = statistics(make_extractor("digits-cnn")(load_data("digits", "train").images))
    assert row.fid_infinity == pytest.approx(fid_infinity(features, reference, 5), rel=1e-3)
    assert row.fid_infinity < row.fid


def test_estimate_before_the_sweep(run, cache, tmp_path, monkeypatch, capsys):
    """A sampler that sleeps a known time for each step makes the estimate known."""
    true = eval.sweep.points.sample_images

    def slow(model, setting, indices, *args, **kwargs):
        time.sleep(0.01 * setting.steps * len(indices))
        return true(model, setting, indices, *args, **kwargs)

    monkeypatch.setattr(eval.sweep.points, "sample_images", slow)
    entry = {"samplers": ["ddim"], "steps": [2, 500]}
    sweep = eval.sweep.run.Sweep(
        config(run, tmp_path / "c.jsonl", cache, entry), start_processes(cpu=True), load
    )
    todo = [(m.point, [m.extractor], sweep.store_of(m)) for m in sweep.measurements]
    assert sweep.sampler.estimate(todo) == pytest.approx(0.01 * 30 * 502, rel=0.4)
    assert not (tmp_path / "c.jsonl").exists()
    assert [eval.sweep.run.duration(s) for s in (0.1, 75, 1000, 9000)] == [
        "1 s",
        "75 s",
        "17 min",
        "2.5 h",
    ]
    measure(config(run, tmp_path / "c.jsonl", cache, {"samplers": ["ddim"], "steps": [1]}, n=5))
    assert "this will take about 1 s of sampling" in capsys.readouterr().err


class Pixels(Extractor):
    """The 64 pixels of a digit as its features."""

    name, sha256, width = "pixels", "00", 64

    def __init__(self, name, device="cpu", weights=None):
        self.device = torch.device(device)

    def _features(self, images):
        return images.flatten(1).float()


def test_two_extractors_share_the_samples(run, cache, tmp_path, monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "pixels", Pixels)
    out = tmp_path / "curves.jsonl"
    entry = {"samplers": ["ddim"], "steps": [2]}
    measure(config(run, out, cache, entry, extractor=["digits-cnn", "pixels"]))
    assert [(r.method, r.extractor) for r in read_rows(out)] == [
        ("floor", "digits-cnn"), ("floor", "pixels"), ("ddpm", "digits-cnn"), ("ddpm", "pixels"),
    ]  # fmt: skip
    two = Setting(sampler="ddim", steps=2)
    images = sample_images(load(run).model, two, torch.arange(30)).flatten(1).float()
    train = load_data("digits", "train").images.flatten(1).float()
    expected = frechet_distance(statistics(images), statistics(train))
    assert read_rows(out)[-1].fid == pytest.approx(expected, rel=1e-3)
    # With one of the two lines lost, only that one comes back.
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]))
    measure(config(run, out, cache, entry, extractor=["digits-cnn", "pixels"]))
    assert (
        out.read_bytes().splitlines(keepends=True)[:3] == lines[:3]
        and comparable(out)[3]["extractor"] == "pixels"
    )


def test_command_line(run, cache, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "curves.jsonl"

    def evaluate(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        try:
            runpy.run_module("scripts.evaluate", run_name="__main__")
        except SystemExit as stop:
            return stop.code
        return 0

    given = [
        "--run",
        run,
        "--sampler",
        "ddim",
        "--n",
        30,
        "--extractor",
        "digits-cnn",
        "--out",
        out,
    ]
    given += [f"cache={cache}", "device=cpu", "bootstrap=0"]
    for steps, words in [
        ("0", "greater than or equal to 1"),
        ("1,x", "numbers with commas"),
    ]:
        assert evaluate(*given, "--steps", steps) == 2
        errors = capsys.readouterr().err
        assert len(errors.splitlines()) == 1 and errors.startswith("error: ") and words in errors
    assert evaluate() == 2 and "nothing to measure" in capsys.readouterr().err
    assert not out.parent.exists()
    assert evaluate(*given, "--steps", "1,2") == 0
    assert [(r.steps, r.fid_std, r.fid_error) for r in read_rows(out)] == [
        (s, None, None) for s in (None, 1, 2)
    ]
    printed = capsys.readouterr()
    assert (
        "FD@30, digits-cnn features" in printed.out
        and "2 of 2 points to measure: 30 images each, 90" in printed.err
    )


def test_refusals_write_nothing(run, cache, tmp_path):
    out = tmp_path / "new" / "curves.jsonl"
    for entry, changes, words in [
        ({"steps": [4, 0]}, {}, "greater than or equal to 1"),
        ({"samplers": ["dimm"]}, {}, "did you mean 'ddim'"),
        ({"grid": "lamb"}, {}, "grid"),
        ({"run": str(run) + "x"}, {}, "is not a run"),
        ({}, {"extrapolate": 2}, "extrapolate = 2"),
        ({}, {"extrapolate": 5}, "64 features need at least 256 images .n . sets., there are 30"),
        ({}, {"sets": 2}, "sets = 2"),
        ({}, {"extractor": ["digits-cnn", "digits-cnn"]}, "names one twice"),
        ({}, {"extractor": "digit-cnn"}, "did you mean 'digits-cnn'"),
        ({}, {"extractor": "fashion-cnn"}, "fashion-cnn on digits"),
        ({}, {"nn": 5}, "unknown key 'nn'"),
    ]:
        with pytest.raises(UserError, match=words):
            measure(config(run, out, cache, entry, **changes))
    assert not out.parent.exists()


def test_runs_that_are_not_in_their_folder_are_taken_as_they_stand(run, tmp_path):
    """A published checkpoint's name beside runs of ours; a run that is missing is still missed in
    the folder."""

    def folder_of(name: str) -> Path:
        entry = {"run": name, "steps": [2]}
        sweep = config(run, tmp_path / "c.jsonl", "cache", entry, runs=str(run.parent))
        return plan(sweep, torch.device("cpu"), load)[0].run.folder

    assert folder_of("teacher") == run
    assert folder_of("teachers/shipped/digits") == Path("teachers/shipped/digits")
    with pytest.raises(UserError, match=f"{run.parent / 'absent'} is not a run"):
        folder_of("absent")


def test_diverged_weights_stop_the_sweep(cache, tmp_path):
    train_tiny(tmp_path / "run", images=64)
    diverge(tmp_path / "run")
    out = tmp_path / "curves.jsonl"
    with pytest.raises(UserError, match="NaN or infinite images"):
        measure(config(tmp_path / "run", out, cache, floor=False))
    assert not out.exists()


LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def test_two_processes_give_the_rows_of_one(run, cache, uninterrupted, tmp_path):
    out = tmp_path / "curves.jsonl"
    file = tmp_path / "sweep.yaml"
    # Three sets, so that samples which change places between the processes change the numbers.
    sweep = config(run, out, cache, n=25, sets=3, keep_samples=40)
    file.write_text(json.dumps(sweep.model_dump(mode="json")))
    command = [*LAUNCHER, "-m", "scripts.evaluate", str(file)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (
        "DDPM teacher, ddim" in done.stdout and done.stdout.count("steps") == 1
    )  # one table, from the main process alone
    alone = tmp_path / "alone" / "curves.jsonl"
    measure(config(run, alone, cache, n=25, sets=3, keep_samples=40))
    for got, expected in zip(comparable(out), comparable(alone), strict=True):
        for key, value in expected.items():
            assert got[key] == (
                pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            ), key
    strips = sorted((alone.parent / "samples").iterdir())
    assert len(strips) == 4
    for strip in strips:
        assert (
            np.asarray(Image.open(strip))
            == np.asarray(Image.open(tmp_path / "samples" / strip.name))
        ).all()


def test_processes_really_share_the_work(tmp_path):
    """Two processes that each did everything would pass the test above, so they say here what they
    are."""
    code = "import os; from core.processes import *; s = start_processes(); words = [s.num_processes, share_of(5, s).tolist(), "
    code += "gather_in_order(share_of(5, s), 5, s).tolist(), sum_over([1.5], s)]; "
    code += "os.write(1, (' '.join(map(str, words)) + chr(10)).encode())"  # in one piece, since both write to one pipe
    (tmp_path / "probe.py").write_text(code)
    command = [*LAUNCHER, str(tmp_path / "probe.py")]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(eval.__file__).parents[1]),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    whole = "[0, 1, 2, 3, 4] [3.0]"
    assert sorted(done.stdout.splitlines()) == [f"2 [0, 1, 2] {whole}", f"2 [3, 4] {whole}"], (
        done.stderr
    )


def test_launched_processes_that_do_not_know_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched but accelerate joined 1"):
        start_processes(cpu=True)


def test_compiled_networks_give_the_same_rows(cache, tmp_path):
    """torch.compile fuses and so rounds otherwise; evaluations are still counted one by one. A
    small network: it compiles fast."""
    train_tiny(tmp_path / "run", images=64, own_network={"name": "affine"}, prediction="x0")
    for name, compiled in (("eager", False), ("compiled", True)):
        measure(
            config(
                tmp_path / "run",
                tmp_path / name / "curves.jsonl",
                cache,
                compile=compiled,
                batch_size=30,
            )
        )
    eager, fused = (comparable(tmp_path / name / "curves.jsonl") for name in ("eager", "compiled"))
    for got, expected in zip(fused, eager, strict=True):
        for key in ("fid", "kid", "precision", "recall"):
            assert got[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key
        assert (got["nfe"], got["n"], got["steps"]) == (
            expected["nfe"],
            expected["n"],
            expected["steps"],
        )
    assert [
        row.device.endswith(", compiled")
        for row in read_rows(tmp_path / "compiled" / "curves.jsonl")[1:]
    ] == [True] * 4


def test_the_same_data_may_lie_elsewhere(run, cache, tmp_path):
    """A run says where its images were when it was trained; whoever measures it knows where they
    are now."""

    def chosen(trained: dict, given: dict | None) -> DataConfig:
        loaded = replace(load(run), data=DataConfig(**trained))
        return data_of(config(run, tmp_path / "c.jsonl", cache, data=given), loaded)

    old, new = {"name": "cifar10", "root": "/home/a"}, {"name": "cifar10", "root": "/mnt/b"}
    assert chosen(old, new) == DataConfig(**new) and chosen(old, None) == chosen(
        old, {"name": "cifar10"}
    ) == DataConfig(**old)
    with pytest.raises(UserError, match="trained on side 32, but the sweep's data has side 64"):
        chosen(
            {"name": "folder", "root": "/a", "side": 32},
            {"name": "folder", "root": "/a", "side": 64},
        )
    padded = {"name": "folder", "root": "/a", "side": 32, "fit": "pad"}
    with pytest.raises(UserError, match="trained on fit pad, but the sweep's data has fit crop"):
        chosen(padded, padded | {"fit": "crop"})
