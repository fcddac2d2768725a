"""Published checkpoints through the command lines: looked at, sampled, measured, distilled,
verified, exported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from core.condition import Condition
from core.diffusion.grids import make_grid
from core.noise import Noise
from core.sampling.denoisers import denoiser_for
from core.sampling.solvers import SAMPLERS
from eval.curves_file import read_rows
from lab import load
from tests.helpers.command_lines import run_script
from tests.helpers.tiny import tiny_config, train_tiny

pytest.importorskip("diffusers")
from tests.helpers.checkpoints import save_checkpoint, with_scheduler


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Digits' shape, predicting v."""
    scheduler = {"prediction_type": "v_prediction", "variance_type": "fixed_large"}
    return save_checkpoint(
        tmp_path_factory.mktemp("published") / "tiny-ddpm", scheduler_config=scheduler
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train_tiny(folder, images=640)
    return folder


@pytest.fixture(scope="module")
def student(run, tmp_path_factory) -> Path:
    """A progressive run, which keeps a network for 4, for 2 and for 1 step."""
    folder = tmp_path_factory.mktemp("students") / "student"
    train_tiny(
        folder, "progressive", method={"teacher": str(run), "start_steps": 4}, images=1280, lr=3e-3
    )
    return folder


def teacher(*arguments) -> tuple[int, str, str]:
    out = StringIO()
    with redirect_stdout(out):
        code, errors = run_script("teacher", *arguments)
    return code, out.getvalue(), errors


def test_info(checkpoint, run):
    code, out, _ = teacher("info", checkpoint)
    lines = {line[:18].strip(): line[18:].strip() for line in out.splitlines()}
    assert (
        code == 0
        and lines["prediction"] == "v"
        and lines["images"] == "1x8x8"
        and lines["classes"] == "none (unconditional)"
    )
    count = sum(p.numel() for p in load(checkpoint).model.network.parameters())
    assert f"UNet2DModel, {count:,} parameters" in lines["network"]
    assert lines["path"].startswith("vp-linear") and "as published" in lines["weights"]
    assert (
        "--sampler ddpm-large --grid leading --threshold static" in out
        and "not known" in lines["price"]
    )
    code, out, _ = teacher("info", run)
    assert (
        code == 0
        and "640 images, 1,920 network evaluations" in out
        and re.search(r"half-life 1\d\d images", out)
    )


def test_sampling_as_published(checkpoint, tmp_path):
    options = [
        "--sampler",
        "ddpm-large",
        "--grid",
        "leading",
        "--threshold",
        "static",
        "--steps",
        4,
        "--count",
        3,
    ]
    code, errors = run_script("sample", checkpoint, *options, "--folder", tmp_path / "out")
    assert code == 0, errors
    model, rng = load(checkpoint).model, Noise(0, torch.arange(3))
    noise = rng.normal((1, 8, 8), "prior")
    with torch.no_grad():
        x = SAMPLERS["ddpm-large"].run(
            denoiser_for(model, threshold="static"),
            noise,
            make_grid("leading", model.path, 4, 1000),
            rng,
        )
    import numpy as np

    for i in range(3):
        assert (
            np.asarray(Image.open(tmp_path / "out" / f"{i:06d}.png"))
            == model.codec.decode(x)[i, 0].numpy()
        ).all()


def test_measuring(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = [
        "--run",
        checkpoint,
        "--steps",
        "2",
        "--n",
        30,
        "--extractor",
        "digits-cnn",
        "--out",
        tmp_path / "c.jsonl",
        "--grid",
        "leading",
    ]
    code, errors = run_script("evaluate", *base)
    assert (
        code == 2
        and "does not say what it was trained on (1x8x8 images)" in errors
        and "--data cifar10" in errors
    )
    assert not (tmp_path / "c.jsonl").exists()
    code, errors = run_script("evaluate", *base, "--data", "digits")
    assert code == 0, errors
    floor, row = read_rows(tmp_path / "c.jsonl")
    given = (
        row.method,
        row.run,
        row.ema,
        row.grid,
        row.nfe,
        row.train_evals,
        row.dataset,
    )
    assert given == ("pretrained", "tiny-ddpm", "as published", "leading", 2.0, None, "digits")
    assert row.weights_sha256 == load(checkpoint).weights_sha256 and row.fid > floor.fid
    code, errors = run_script(
        "evaluate", "--run", "owner/name", "--steps", "2", "--n", 30, "--extractor", "digits-cnn"
    )
    assert code == 2 and "owner/name is no folder here: say with --out" in errors
    base[1] = checkpoint
    images = tmp_path / "images" / "train"
    images.mkdir(parents=True)
    for i in range(8):
        Image.new("L", (16, 16), i).save(images / f"{i}.png")
    options = ["--data", "folder", "--data-root", tmp_path / "images", "--data-side", 16]
    code, errors = run_script("evaluate", *base, *options)
    assert code == 2 and "makes 1x8x8 images, but data 'images' has 1x16x16" in errors


def test_a_run_keeps_its_own_data(run, tmp_path):
    options = [
        "--steps",
        "1",
        "--n",
        30,
        "--extractor",
        "digits-cnn",
        "--out",
        tmp_path / "c.jsonl",
        "--data",
        "fashion_mnist",
    ]
    code, errors = run_script("evaluate", "--run", run, *options)
    assert (
        code == 2 and "was trained on data digits, but the sweep's data is fashion_mnist" in errors
    )


@pytest.mark.parametrize(
    ("name", "prediction"), [("progressive", "v"), ("consistency", "v"), ("consistency", "eps")]
)
def test_students_copy_its_architecture_and_weights(checkpoint, tmp_path, name, prediction):
    """Trained by the command line, loaded again from its own checkpoint, and exported where that
    can be said. Of eps as most published checkpoints predict it, the student begins with the
    weights, too, and learns to read them as v first."""
    if prediction == "eps":
        checkpoint = with_scheduler(checkpoint, tmp_path / "tiny-ddpm", "DDPMScheduler")
    method = {"teacher": str(checkpoint)} | (
        {"start_steps": 2} if name == "progressive" else {"steps_start": 2, "steps_end": 2}
    )
    values = tiny_config(tmp_path / "student", name, method=method, images=128, lr=1e-12)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(values))
    code, errors = run_script("train", tmp_path / "s.yaml", "--cpu")
    assert code == 0, errors
    student, published = load(tmp_path / "student"), load(checkpoint)
    assert (
        student.teacher == "tiny-ddpm"
        and student.spec.network == published.spec.network
        and student.spec.path == "vp-linear"
    )
    for key, tensor in published.model.network.state_dict().items():
        torch.testing.assert_close(
            student.model.network.state_dict()[key], tensor, rtol=1e-4, atol=1e-6
        )
    code, out, errors = teacher("export", tmp_path / "student", tmp_path / "out")
    if name == "consistency":
        assert code == 2 and "only eps, x0 and v on DDPM tables are exported" in errors
        return
    assert code == 0 and "UNet2DModel" in out
    again = load(tmp_path / "out")
    assert (again.spec.path, again.spec.prediction, again.data, again.train_images) == (
        "vp-linear",
        "v",
        student.data,
        128,
    )
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(0.4)
    assert torch.equal(again.model.output(x, t), student.model.output(x, t))


def measured_row(run: Path, out: Path, *options) -> dict:
    base = [
        "--run",
        run,
        "--n",
        30,
        "--extractor",
        "digits-cnn",
        "--out",
        out,
        "--seed",
        5,
        "--threshold",
        "static",
    ]
    code, errors = run_script("evaluate", *base, *options)
    assert code == 0, errors
    return next(row for row in read_rows(out) if row.sampler).model_dump(mode="json")


def test_verify(run, tmp_path):
    rows = [
        measured_row(run, tmp_path / f"{s}.jsonl", "--steps", s, "--sampler", "heun", "--sets", 3)
        for s in ("3", "1")
    ]
    card = run / "card.json"
    try:
        card.write_text(json.dumps({"title": "mine", "rows": rows}))
        code, out, _ = teacher("verify", run)
        assert (
            code == 0
            and out.count("\n") == 1
            and "heun, threshold static, 1 step, n = 30, digits-cnn" in out
        )  # the cheaper of the two
        assert "0.00 standard deviations" in out and "as its card says" in out
        code, out, _ = teacher("verify", run, "--all")
        assert code == 0 and out.count("\n") == 2
        assert "card: heun x1" in teacher("info", run)[1]

        off = [row | {"fid": row["fid"] - 5 * row["fid_std"]} for row in rows]
        card.write_text(json.dumps({"rows": off}))
        code, out, _ = teacher("verify", run)
        assert (
            code == 1
            and "5.00 standard deviations worse, more than 4: NOT what its card says" in out
        )
        card.write_text(
            json.dumps({"rows": [row | {"fid": row["fid"] + 5 * row["fid_std"]} for row in rows]})
        )
        code, out, _ = teacher("verify", run)
        assert code == 0 and "5.00 standard deviations better" in out

        other = rows[1] | {"weights_sha256": "0" * 64}
        card.write_text(json.dumps({"rows": [other]}))
        code, _, errors = teacher("verify", run)
        assert code == 0 and "describes other weights" in errors
        for change, words in (
            (
                {"extractor_sha256": "0" * 64},
                "extractor_sha256 is 000000000000..., but the extractor's weights here have",
            ),
            ({"fid_std": None}, "rows, number 1: key 'fid_std' is null"),
            ({"sampler": "dimm"}, "unknown sampler 'dimm' (did you mean 'ddim'?)"),
        ):
            card.write_text(json.dumps({"rows": [rows[1] | change]}))
            code, _, errors = teacher("verify", run)
            assert code == 2 and words in errors, errors
    finally:
        card.unlink()
    code, _, errors = teacher("verify", run)
    assert code == 2 and "has no card.json" in errors


def test_verify_of_an_export_with_its_card(run, tmp_path):
    """The card travels with the export, which knows its data, and holds there too."""
    (run / "card.json").write_text(
        json.dumps({"rows": [measured_row(run, tmp_path / "c.jsonl", "--steps", "2")]})
    )
    try:
        assert teacher("export", run, tmp_path / "out")[0] == 0
    finally:
        (run / "card.json").unlink()
    code, out, errors = teacher("verify", tmp_path / "out")
    assert code == 0 and "0.00 standard deviations" in out and "other weights" not in errors


def test_verify_of_rows_without_a_card(checkpoint, run, tmp_path):
    """A published checkpoint, whose folder nobody writes to, and a folder of images as its data."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(80):
        pixels = torch.randint(
            0, 256, (8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)
        )
        Image.fromarray(pixels.numpy()).save(images / f"{i}.png")
    data = ["--data", "folder", "--data-root", images, "--data-side", "8"]
    rows = tmp_path / "rows.jsonl"
    options = [
        "--steps",
        "1",
        "--n",
        30,
        "--extractor",
        "digits-cnn",
        "--out",
        rows,
        *data,
        f"cache={tmp_path / 'cache'}",
    ]
    code, errors = run_script("evaluate", "--run", checkpoint, *options)
    assert code == 0, errors
    code, out, errors = teacher("verify", checkpoint, "--card", rows, *data)
    assert code == 0 and "0.00 standard deviations" in out and "other weights" not in errors, errors
    code, _, errors = teacher("verify", checkpoint)
    assert (
        code == 2
        and f"scripts.evaluate --run {checkpoint} --steps" in errors
        and "give --card FILE" in errors
    )
    for card, words in (
        (tmp_path / "no.jsonl", "no.jsonl does not exist"),
        (rows, "has no row of the run 'teacher'"),
    ):
        code, _, errors = teacher("verify", run, "--card", card)
        assert code == 2 and words in errors


SNIPPET = """
import sys, torch
source = open(sys.argv[1] + "/README.md").read().split("```python")[1].split("```")[0]
scope = {"FOLDER": sys.argv[1]}
source = source.replace("batch_size=16", 'batch_size=3, generator=torch.Generator().manual_seed(5), output_type="np"')
exec(source, scope | {"torch": torch}, scope)
torch.save(torch.from_numpy(scope["images"]), sys.argv[2])
"""


@pytest.mark.parametrize("steps", [None, 2])
def test_the_readme_of_an_export_samples_as_we_do(run, student, tmp_path, steps):
    """Its lines, run in a process of their own: a teacher in 50 steps, and a student in the 2 that
    it was made for."""
    if steps:
        code, _, errors = teacher("export", student, tmp_path / "none", "--steps", "3")
        assert code == 2 and "keeps no network for 3 steps: there are 1, 2, 4" in errors
        assert teacher("export", student, tmp_path / "out", "--steps", steps)[0] == 0
        ours = load(student, steps=steps)
        assert ours.weights_sha256 != load(student).weights_sha256
        assert json.loads((tmp_path / "out" / "fast_sampling.json").read_text())["steps"] == 2
        assert (
            "Made to be sampled in 2 steps of DDIM" in (tmp_path / "out" / "README.md").read_text()
        )
    else:
        code, _, errors = teacher("export", run, tmp_path / "none", "--steps", "2")
        assert code == 2 and "it is one network for all: leave --steps out" in errors
        assert teacher("export", run, tmp_path / "out")[0] == 0
        ours = load(run)
    (tmp_path / "snippet.py").write_text(SNIPPET)
    torch.save(None, tmp_path / "images.pt")
    command = [sys.executable, tmp_path / "snippet.py", tmp_path / "out", tmp_path / "images.pt"]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    noise = torch.randn((3, 1, 8, 8), generator=torch.Generator().manual_seed(5))
    denoiser = denoiser_for(ours.model, Condition(label=torch.arange(3) % 10))
    x = SAMPLERS["ddim"].run(
        denoiser,
        noise,
        make_grid("trailing", ours.model.path, steps or 50, 1000),
        Noise(0, torch.arange(3)),
    )
    expected = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(
        torch.load(tmp_path / "images.pt", weights_only=True), expected, rtol=0, atol=1e-4
    )


def test_verify_of_a_student_compares_weights_row_by_row(student, tmp_path):
    """Each row was measured on its own network, one on raw weights; a row of other weights is
    named, and only that."""
    rows = [
        measured_row(student, tmp_path / f"{steps}.jsonl", "--steps", steps) for steps in (4, 1)
    ]
    rows.append(measured_row(student, tmp_path / "raw.jsonl", "--steps", 2, "--weights", "raw"))
    assert len({row["weights_sha256"] for row in rows}) == 3
    try:
        (student / "card.json").write_text(json.dumps({"rows": rows}))
        code, out, errors = teacher("verify", student, "--all")
        assert (
            code == 0
            and out.count("0.00 standard deviations") == 3
            and "other weights" not in errors
        )
        (student / "card.json").write_text(
            json.dumps({"rows": [rows[0] | {"weights_sha256": "0" * 64}, *rows[1:]]})
        )
        code, _, errors = teacher("verify", student, "--all")
        assert code == 0 and errors.count("describes other weights (000000000000...)") == 1
        (student / "card.json").write_text(json.dumps({"rows": rows}))
        code, out, errors = teacher(
            "export", student, tmp_path / "out", "--weights", "raw", "--steps", "2"
        )
        assert code == 0 and "rows of card.json left out, measured on other weights: 2 of 3" in out
    finally:
        (student / "card.json").unlink()
    code, out, errors = teacher(
        "verify", tmp_path / "out"
    )  # of raw weights, which are the only ones there
    assert (
        code == 0
        and "ddim, threshold static, 2 steps" in out
        and "0.00 standard deviations" in out
        and "other weights" not in errors
    )
    written = tmp_path / "all.jsonl"
    older = rows[1] | {
        "weights_sha256": "0" * 64,
        "fid": 0.0,
    }  # the same point before more training
    written.write_text("".join(json.dumps(row) + "\n" for row in (older, rows[1])))
    code, out, errors = teacher("verify", student, "--all", "--card", written)
    assert code == 0 and out.count("\n") == 1 and "other weights" not in errors
