"""Shipping a teacher: half precision and nothing lost by it, a card of rows measured on these
weights, recipes that start from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from core.sampling.sample import sample_images
from core.setting import Setting
from core.training.checkpoints import latest_checkpoint
from lab import load
from tests.helpers.command_lines import run_script, tree
from tests.helpers.latents import train_autoencoder, train_in_latents
from tests.helpers.tiny import train_tiny

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train_tiny(folder, images=1280, method={"label_dropout": 0.1})
    return folder


def test_shipped_weights_sample_the_same_images(teacher, tmp_path):
    code, errors = run_script(
        "scripts.maintain.ship_teacher", str(teacher), str(tmp_path / "shipped")
    )
    assert code == 0, errors
    ours, theirs = load(teacher), load(tmp_path / "shipped")
    setting = Setting(sampler="ddim", steps=4)
    a, b = (sample_images(m.model, setting, torch.arange(20)).float() for m in (ours, theirs))
    assert (a - b).abs().max() <= 3  # of 255: half precision rounds weights to 3 digits
    assert ours.weights_sha256 != theirs.weights_sha256 and ours.train_evals == theirs.train_evals
    full, half = (
        latest_checkpoint(folder) / "ema.safetensors" for folder in (teacher, tmp_path / "shipped")
    )
    assert half.stat().st_size < 0.6 * full.stat().st_size
    code, errors = run_script(
        "scripts.maintain.ship_teacher", str(teacher), str(tmp_path / "shipped")
    )
    assert code != 0 and "exists" in errors


def test_a_shipped_run_in_latents_has_its_autoencoder_with_it(tmp_path):
    train_autoencoder(tmp_path / "autoencoder")
    train_in_latents(tmp_path / "run", tmp_path / "autoencoder")
    shipped = tmp_path / "shipped"
    code, errors = run_script("scripts.maintain.ship_teacher", tmp_path / "run", shipped)
    assert code == 0, errors
    shutil.rmtree(tmp_path / "autoencoder")
    ours, theirs = load(tmp_path / "run"), load(shipped)
    assert theirs.data.codec is None and theirs.model.codec.sha256 == ours.model.codec.sha256
    setting = Setting(sampler="ddim", steps=2)
    a, b = (sample_images(m.model, setting, torch.arange(20)).float() for m in (ours, theirs))
    assert (a - b).abs().max() <= 3


def test_card_holds_only_rows_of_these_weights(teacher, tmp_path):
    shipped, rows = tmp_path / "shipped", tmp_path / "rows.jsonl"
    run_script("scripts.maintain.ship_teacher", str(teacher), str(shipped))
    for run in (teacher, shipped):
        options = [
            "--sampler",
            "ddim",
            "--steps",
            "2",
            "--n",
            "30",
            "--extractor",
            "digits-cnn",
            "--out",
            str(rows),
        ]
        code, errors = run_script(
            "evaluate",
            "--run",
            str(run),
            *options,
            "device=cpu",
            f"cache={tmp_path}/cache",
            "bootstrap=4",
        )
        assert code == 0, errors
    code, errors = run_script("scripts.maintain.ship_teacher", "--card", str(rows), str(shipped))
    assert code == 0, errors
    card = json.loads((shipped / "card.json").read_text())["rows"]
    assert [row["weights_sha256"] for row in card] == [load(shipped).weights_sha256]
    text = (shipped / "README.md").read_text()
    assert (
        f"{card[0]['fid']:.0f}"[:2] in text and "CC BY 4.0" in text and "label_dropout: 0.1" in text
    )
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(
            line + "\n"
            for line in rows.read_text().splitlines()
            if card[0]["weights_sha256"] not in line
        )
    )
    code, errors = run_script("scripts.maintain.ship_teacher", "--card", str(other), str(shipped))
    assert code != 0 and "has no row measured on" in errors


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "teachers" / "shipped").iterdir()), ids=lambda folder: folder.name
)
def test_shipped_teachers_are_what_their_cards_say_they_are(folder):
    """The hash in the card is that of the weights in the repository, which fit and are small
    enough."""
    run = load(folder)
    rows = json.loads((folder / "card.json").read_text())["rows"]
    assert rows and {row["weights_sha256"] for row in rows} == {run.weights_sha256}
    assert (
        run.weights_file.stat().st_size < 10e6
        and folder.name.startswith(run.data.name)
        and run.spec.num_classes == 10
    )


def test_recipes_start_from_the_shipped_teacher(tmp_path, monkeypatch):
    """It is copied where there is none, whole, and what is there is left alone."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    trained = []
    monkeypatch.setattr(
        "scripts.lanes.run_jobs", lambda jobs, lanes, **_: trained.extend(jobs) or {}
    )
    code, errors = run_script("recipe", "digits", "consistency")
    assert code == 0 and "starting from the shipped teacher" in errors
    copied, shipped = tmp_path / "runs" / "teacher", ROOT / "teachers" / "shipped" / "digits"
    assert load(copied).weights_sha256 == load(shipped).weights_sha256
    assert tree(copied) == tree(shipped) and [path.name for path in copied.parent.iterdir()] == [
        "teacher"
    ]
    (copied / "card.json").unlink()
    code, errors = run_script("recipe", "digits", "consistency")
    assert (code, errors) == (0, "") and not (copied / "card.json").exists()
    assert [job.name for job in trained] == ["consistency", "consistency"]


def test_a_copy_of_a_shipped_teacher_is_not_trained_on(tmp_path):
    """What a user gets who distils first and then calls the teacher's recipe: not the advice to
    delete it."""
    copied = tmp_path / "teacher"
    shutil.copytree(ROOT / "teachers" / "shipped" / "digits", copied)
    code, errors = run_script(
        "train", ROOT / "configs" / "digits" / "teacher.yaml", f"run={copied}", "--cpu"
    )
    assert (
        code == 2
        and f"{copied} is a shipped model, weights without the state of their training" in errors
    )
    assert "delete" not in errors and load(copied).spec.num_classes == 10
