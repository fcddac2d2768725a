"""The report: everything is in the page, and nothing comes from elsewhere."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.data import load_data
from core.errors import UserError
from core.pictures import save_png
from core.sampling.sample import sample_images
from core.setting import Setting
from core.training.checkpoints import CHECKSUMS
from eval.curves.seeds import seeded
from eval.curves_file import append_row, read_rows
from eval.report.document import LIGHT, collect, png_uri, readable, sample_strips, write_report
from eval.report.training import loss_by_level, prices
from eval.rows import Row, measure_label
from lab import load
from tests.helpers.rows import changed, row

STEPS = [1, 2, 4]


def data_of(page: Path) -> dict:
    blocks = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert len(blocks) == 1
    return json.loads(blocks[0])


def decoded(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def test_everything_measured_is_in_the_page(folder):
    data = data_of(folder / "report.html")
    rows = [json.loads(row.json_line()) for row in read_rows(folder / "curves.jsonl")]
    assert all(0 <= row.pop("class_distance") <= 1 for row in data["rows"])  # what the page adds
    assert data["rows"] == rows
    points = [data["rows"][p["row"]] for group in data["groups"] for p in group["points"]]
    assert sorted(map(json.dumps, points)) == sorted(json.dumps(r) for r in rows if r["sampler"])
    assert [g["measures"]["fid"] for g in data["groups"]] == ["FD@30", "FID"]
    assert data["series"][0]["name"] == "DDPM teacher, ddim"
    assert len(data["series"]) == 4
    configs = {c["name"]: c["text"] for c in data["configs"]}
    for run in ("teacher", "student", "flow"):
        assert configs[f"{run}/config.yaml"] == (folder / run / "config.yaml").read_text()
        assert len(data["losses"][run]["moments"][-1]["loss"]) == 8
    cost = {one["run"]: one for one in data["prices"]}
    assert cost["student"]["inherited_evals"] == cost["teacher"]["train_evals"] == 640 * 3
    assert cost["student"]["train_evals"] == next(
        r["train_evals"] for r in rows if r["run"] == "student"
    )


def test_pictures_are_the_samples(folder):
    data = data_of(folder / "report.html")
    assert {(s["series"], s["steps"]) for s in data["strips"]} == {
        (s, n) for s in range(4) for n in STEPS
    } - {(2, 4)}
    for strip in data["strips"]:
        assert decoded(strip["image"]).shape == (8, 16 * 8)
    tracks = data["trajectories"]
    assert (tracks["side"], tracks["images"], len(tracks["labels"])) == (8, 3, 3) and not tracks[
        "notes"
    ]
    assert {(f["series"], f["steps"]) for f in tracks["films"]} == {
        (0, 1),
        (0, 4),
        (1, 1),
        (1, 4),
        (2, 1),
        (3, 1),
        (3, 4),
    }
    sheets = {key: decoded(uri) for key, uri in tracks["sheets"].items()}
    digits = load_data("digits", "train")
    for film in tracks["films"]:
        assert (
            film["forward_times"][0] == film["times"][-1] == 0
            and film["forward_times"][-1] == film["times"][0] == 1
        )
        assert (
            film["taken"] == list(range(film["steps"] + 1))
            and len(film["times"]) == film["steps"] + 1
        )
        for kind, times in (("forward", film["forward_times"]), ("back", film["times"])):
            for key in (kind, f"{kind}_guess"):
                assert sheets[film[key]].shape == (3 * 8, 8 * len(times))
        out, back = sheets[film["forward"]], sheets[film["back"]]
        assert any((out[:8, :8] == image.numpy()).all() for image in digits.images[:, 0])
        # The way back begins in the noise where the way out ended; vp-cosine leaves a trace of the
        # image there.
        assert np.abs(out[:, -8:].astype(int) - back[:, :8]).max() <= (
            2 if film["path"] == "vp-cosine" else 0
        )
        assert (back[:, -8:] == sheets[film["back_guess"]][:, -8:]).all()
    film = next(f for f in tracks["films"] if (f["series"], f["steps"]) == (3, 4))
    labels = torch.tensor(tracks["labels"])
    setting = Setting(sampler="euler", steps=4)
    expected = sample_images(load(folder / "flow").model, setting, torch.arange(3), label=labels)
    assert (sheets[film["back"]][:, -8:] == np.concatenate(list(expected[:, 0].numpy()))).all()


def test_nothing_is_loaded_from_elsewhere(folder):
    page = (folder / "report.html").read_text()
    ours = page[: page.index("* plotly.js v")] + page[page.rindex("<script>") :]
    assert not re.search(r"""(src|href|action|srcset)\s*=\s*["']?\s*(https?:)?//""", ours)
    assert not re.search(
        r"""(@import|url\(|import\s*\(|\bfetch\(|XMLHttpRequest|sendBeacon)""", ours
    )
    assert "<link" not in ours and "http://www.w3.org/2000/svg" in ours
    assert (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
        in ours
    )
    assert "@@" not in ours and len(re.findall(r"<script[^>]*\ssrc", page)) == 0


def test_the_same_input_gives_the_same_page(folder, tmp_path):
    again = write_report(
        folder / "curves.jsonl", tmp_path / "report.html", load, steps=[1, 4], images=3
    )
    assert again.read_bytes() == (folder / "report.html").read_bytes()


def test_without_runs_the_page_says_so(folder, tmp_path, monkeypatch):
    shutil.copy(folder / "curves.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    data = data_of(write_report(tmp_path / "curves.jsonl", tmp_path / "report.html", load))
    assert data["trajectories"] == {"missing": "The folders of the runs were not found."}
    assert (
        data["strips"] == data["configs"] == [] and data["losses"] == {} and len(data["rows"]) == 13
    )


def test_other_weights_are_mentioned(folder, tmp_path):
    runs = shutil.copytree(folder, tmp_path / "runs")
    weights = next((runs / "flow" / "checkpoints").glob("*/ema.safetensors"))
    shutil.copy(weights.with_name("raw.safetensors"), weights)
    (weights.parent / CHECKSUMS).unlink()  # as of earlier versions
    shutil.rmtree(runs / "student" / "checkpoints")
    data = data_of(
        write_report(folder / "curves.jsonl", tmp_path / "report.html", load, runs, [1], 1)
    )
    assert len(data["trajectories"]["notes"]) == 2
    assert "student has no checkpoint" in data["trajectories"]["notes"][0]
    assert "flow are not those that were measured" in data["trajectories"]["notes"][1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "nowhere does not exist: python -m scripts.evaluate writes it"),
        (
            ["{folder}", "--runs", "nowhere"],
            "--runs nowhere holds none of the runs teacher, student, flow",
        ),
        (["{folder}", "--steps", "1,x"], "--steps 1,x: give numbers"),
        (["{folder}", "--images", "-1"], "--images -1: at least 0"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, words):
    command = [
        sys.executable,
        "-m",
        "scripts.report",
        *(a.format(folder=folder) for a in arguments),
    ]
    result = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (
        result.returncode == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1
    )


def test_only_a_floor(folder, tmp_path):
    append_row(tmp_path / "curves.jsonl", read_rows(folder / "curves.jsonl")[0])
    with pytest.raises(UserError, match="no measured points"):
        write_report(tmp_path / "curves.jsonl", tmp_path / "report.html", load)


def test_names_of_measures():
    fid = row("ddpm", 1, 2.0, metric="FID", n=50_000, extractor="inception-v3-compat")
    assert measure_label(fid) == "FID" and measure_label(changed(fid, n=5000)) == "FID@5000"
    ours = changed(fid, metric="FD")
    assert [measure_label(ours, key) for key in ("fid", "kid", "recall")] == [
        "FD@50000",
        "KD@50000",
        "recall@50000",
    ]
    assert measure_label(ours, "fid_infinity") == "FD∞"


def test_colours_can_be_read():
    assert readable("#D55E00", LIGHT) == "#D55E00" and readable("#222222", (0, 0, 0)) == "#DDDDDD"
    assert readable("#F0E442", LIGHT) != "#F0E442"
    assert decoded(png_uri(torch.arange(12, dtype=torch.uint8).view(3, 2, 2))).shape == (2, 2, 3)


def test_prices_follow_the_chain():
    def priced(run: str, teacher: str | None, evals: float) -> Row:
        price = {"train_images": 1, "train_evals": evals, "train_seconds": 1}
        return row(run, 1, 2.0, teacher=teacher, **price)

    rows = [
        priced("c", "b", 5.0),
        priced("b", "a", 7.0),
        priced("a", None, 11.0),
        priced("b", "a", 3.0),
        priced("d", "lost", 1.0),
    ]
    found = {
        one["run"]: (one["train_evals"], one["inherited_evals"], one["complete"])
        for one in prices(rows, None)
    }
    assert found == {
        "a": (11.0, 0, True),
        "b": (7.0, 11.0, True),
        "c": (5.0, 18.0, True),
        "d": (1.0, 0, False),
    }


def test_loss_of_stages(tmp_path):
    lines = [
        {"images": i, "stage": "ab"[i > 3], "loss_by_t": [float(i), None if i < 4 else 2.0 * i]}
        for i in range(1, 7)
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"images": 7, "sta'
    )
    found = loss_by_level(tmp_path)
    assert found["moments"] == [
        {"name": "a", "loss": [3.0, None]},
        {"name": "b", "loss": [6.0, 12.0]},
    ]
    assert found["images"] == [1, 2, 3, 4, 5, 6] and loss_by_level(tmp_path / "none") is None


def test_no_other_picture_of_the_disk_is_embedded(tmp_path, capsys):
    """Rows from elsewhere name a picture outside, one behind a link, and a file that is none."""
    folder = tmp_path / "curves"
    (folder / "samples").mkdir(parents=True)
    secret = tmp_path / "secret.png"
    save_png(torch.zeros(1, 4, 4, dtype=torch.uint8), secret)
    (folder / "samples" / "link.png").symlink_to(secret)
    (folder / "samples" / "passwords.png").write_text("root")
    save_png(torch.ones(1, 4, 8, dtype=torch.uint8), folder / "samples" / "good.png")
    names = ("../secret.png", str(secret), "samples/link.png", "samples/passwords.png")
    rows = [row("ddpm", i, 2.0, samples=name) for i, name in enumerate(names, 1)]
    good = row("ddpm", 9, 2.0, samples="samples/good.png")
    (strip,) = sample_strips([[*rows, good]], folder)
    assert (strip["steps"], strip["width"], strip["height"]) == (9, 8, 4)
    assert (
        base64.b64decode(strip["image"].partition(",")[2])
        == (folder / "samples" / "good.png").read_bytes()
    )
    assert capsys.readouterr().err.count("the report goes without it") == len(names)


def test_nothing_outside_the_runs_is_embedded(tmp_path, capsys):
    """Names of runs that lead elsewhere, as rows name them and as prices name teachers; configs
    that are links."""
    outside, runs = tmp_path / "outside", tmp_path / "curves"
    for place in (outside, runs / "mine"):
        place.mkdir(parents=True)
        (place / "config.yaml").write_text(f"secret: {place.name}")
        (place / "metrics.jsonl").write_text('{"images": 1, "stage": "s", "loss_by_t": [1.0]}')
    (runs / "link").mkdir()
    (runs / "link" / "config.yaml").symlink_to(outside / "config.yaml")
    (runs / "link.yaml").symlink_to(outside / "config.yaml")
    names = ["../outside", str(outside), "mine/../../outside", "link", "mine", "..", "a\0b"]
    lines = [row(name, 1, 2.0, teacher="../outside", train_evals=1.0) for name in names]
    (runs / "curves.jsonl").write_text("".join(f"{one.json_line()}\n" for one in lines))
    data = collect(runs / "curves.jsonl", runs, [1], 2, load)
    assert [config["text"] for config in data["configs"]] == ["secret: mine"]
    assert data["losses"].keys() == {"mine"}
    assert "missing" in data["trajectories"]
    said = capsys.readouterr().err
    assert "link.yaml is a link" in said and "is no name of a folder" in said


def test_training_seeds_are_a_mean_that_knows_its_rows(tmp_path):
    """One series with the mean and its error; what is published stays as it is."""
    fids = {0: 3.0, 1: 4.0, 2: 8.0}
    rows = [
        row("flow", steps, fid * steps, run=seeded("flow", seed), seed=seed, train_seed=seed,
            config_sha256=str(seed), weights_sha256=str(seed))
        for seed, fid in fids.items()
        for steps in (1, 2)
    ]  # fmt: skip
    old = changed(rows[2], fid=99.0)  # measured again later
    for one in (row("ddpm", 1, 5.0), old, *rows):
        append_row(tmp_path / "curves.jsonl", one)
    data = json.loads(json.dumps(collect(tmp_path / "curves.jsonl", None, [1], 0, load)))
    published = [json.loads(one.json_line()) for one in (row("ddpm", 1, 5.0), old, *rows)]
    assert [r | {"class_distance": None} for r in published] == data["rows"][:8]
    means = data["rows"][8:]
    assert [series["name"] for series in data["series"]] == ["DDPM teacher, ddim", "flow, ddim"]
    assert data["series"][1]["seeds"] == "3" and data["series"][1]["run"] == "flow"
    assert [p["row"] for p in data["groups"][0]["points"]] == [0, 8, 9]
    for mean, steps in zip(means, (1, 2), strict=True):
        members = [data["rows"][i] for i in mean["members"]]
        assert {r["train_seed"]: r["fid"] for r in members} == {
            k: v * steps for k, v in fids.items()
        }
        assert mean["fid"] == pytest.approx(5.0 * steps)
        assert mean["fid_std"] == pytest.approx(steps * 7**0.5 / 3**0.5)  # of 3, 4 and 8
        assert mean["fid_error"] == "standard error over 3 training seeds"
