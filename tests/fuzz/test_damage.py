"""Every file that the repository writes, damaged at random: what reads it does its work, or says in
one line what is wrong; what has a checksum is never taken for what it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

import lab
from core.config import parse, read_config
from core.data.pairs import PairSource
from core.pairs import generate_pairs
from core.setting import Setting
from core.training.checkpoints import CHECKSUMS
from core.training.config import parse_run_config
from core.training.method import Context
from core.training.trainer import Trainer
from eval.ablation.cells import read_note
from eval.card import read_card
from eval.curves_file import append_row, drop_torn_line, read_rows
from eval.report.document import collect
from eval.sweep.config import SweepConfig
from scripts.ablate import read_plan
from scripts.ablate_cell import Task, resolved
from scripts.ablate_plan import plan_words
from teachers.diffusers_format.write import export
from tests.fuzz.damage import damages
from tests.fuzz.mistakes import examples, works_or_one_line
from tests.helpers.study import run_here, write_study

pytestmark = pytest.mark.timeout(7200)
ONE = Setting(sampler="ddim", steps=1)


def files_of(folder: Path) -> list[Path]:
    found = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    return sorted(file for file in found if file.suffix not in (".png", ".svg", ".md"))


def damaged(files: list[Path], act, share: float) -> None:
    """Tries act(file), where the file is damaged."""
    assert files

    @examples(share)
    @given(st.data())
    def tried(data) -> None:
        file = data.draw(st.sampled_from(files))
        damage = data.draw(damages(file))
        with damage.done_to(file):
            act(file, damage)

    tried()


@pytest.fixture
def run(laboratory, tmp_path) -> Path:
    shutil.copytree(laboratory.made("ddpm"), tmp_path / "run")
    return tmp_path / "run"


def test_runs_with_checksums(run):
    """Damage to what a checksum covers is always found."""
    whole = lab.sample(lab.load(run), ONE, n=2)

    def act(file: Path, damage) -> None:
        works = works_or_one_line(lambda: lab.load(run))
        if file.name in ("ema.safetensors", "price.json") and damage.how != "edit":
            same = file.is_file() and file.read_bytes() == content[file]
            assert works == same, damage
        if works:
            works_or_one_line(
                lambda: torch.testing.assert_close(lab.sample(lab.load(run), ONE, n=2), whole)
            )

    files = files_of(run)
    content = {file: file.read_bytes() for file in files}
    damaged(files, act, 1.0)


@pytest.mark.slow
def test_runs_of_strangers(run):
    """The same without checksums, as those of earlier versions are."""
    (sums,) = run.rglob(CHECKSUMS)
    sums.unlink()
    damaged(files_of(run), lambda *_: works_or_one_line(lambda: lab.load(run)), 1.0)


@pytest.mark.slow
def test_resuming(run, laboratory):
    (sums,) = run.rglob(CHECKSUMS)
    values = read_config(laboratory.file("ddpm")) | {"run": str(run)}
    config = parse_run_config(values, lab.method_class("ddpm"), "test")
    accelerator = Accelerator(cpu=True)

    def go_on() -> None:
        context = Context(
            config.data, config.model, config.train.seed, accelerator.device, lab.load
        )
        method = lab.method_class("ddpm").from_config(config.method, context)
        trainer = Trainer(config, method, accelerator)
        if trainer.resume():
            assert trainer.images == images

    images = lab.load(run).train_images

    def act(file: Path, damage) -> None:
        works_or_one_line(go_on)
        text = sums.read_bytes() if sums.is_file() else None
        sums.unlink(missing_ok=True)
        try:
            works_or_one_line(go_on)
        finally:
            if text is not None:
                sums.write_bytes(text)

    assert works_or_one_line(go_on)
    damaged([f for f in files_of(run) if f != sums and f.name != "config.yaml"], act, 0.2)


def test_pairs(laboratory, tmp_path):
    run, folder = lab.load(laboratory.made("rectified-flow")), tmp_path / "pairs"
    recipe = dict(count=4, sampler="heun", steps=2, seed=0, shard=2)
    generate_pairs(run, folder, **recipe)
    whole = PairSource(folder, 0)
    files = files_of(folder)
    assert [file.suffix for file in files] == [".safetensors", ".safetensors", ".json"]
    content = {file: file.read_bytes() for file in files}

    def act(file: Path, damage) -> None:
        if works_or_one_line(lambda: PairSource(folder, 0)):
            found = PairSource(folder, 0)
            assert torch.equal(found.x0, whole.x0) and torch.equal(found.index, whole.index)
        for other in files:
            if other != file:
                assert other.read_bytes() == content[other]
        # and the same command makes them whole again
        if works_or_one_line(lambda: generate_pairs(run, folder, **recipe)):
            assert all(shard.read_bytes() == content[shard] for shard in files[:-1])
        for other in files:
            if other != file:
                other.write_bytes(content[other])

    damaged(files, act, 0.5)


@pytest.fixture
def measured(laboratory, tmp_path):
    """A sweep whose features and reference are kept, and its config."""
    values = {"out": str(tmp_path / "curves.jsonl"), "cache": str(tmp_path / "cache"), "n": 8,
              "runs": str(laboratory.made("ddpm").parent), "extractor": "digits-cnn", "bootstrap": 2,
              "keep_features": True, "keep_samples": 2, "device": "cpu", "floor": False,
              "entries": [{"run": laboratory.made("ddpm").name, "steps": [1]}]}  # fmt: skip
    config = parse(SweepConfig, values, "test")
    (row,) = lab.measure(config)
    return config, row


@pytest.mark.slow
def test_sweeps(measured, tmp_path):
    """Features and references that were damaged are made again, to the same numbers."""
    config, whole = measured
    curves = tmp_path / "curves.jsonl"
    files = [file for file in files_of(tmp_path) if file != curves]
    assert len(files) == 2  # features and reference
    content = {file: file.read_bytes() for file in files}

    def act(file: Path, damage) -> None:
        curves.unlink()
        try:
            if works_or_one_line(lambda: rows.extend(lab.measure(config))):
                for key in ("fid", "kid", "precision", "recall", "nfe", "fid_std"):
                    assert getattr(rows[-1], key) == getattr(whole, key), (key, damage)
        finally:
            curves.unlink(missing_ok=True)
            append_row(curves, whole)
            for other in content.keys() - {file}:
                if other.is_file():
                    other.write_bytes(content[other])

    rows = []
    damaged(files, act, 0.3)


def test_rows(measured, tmp_path):
    """Read by everyone, and written on by a sweep: no row that was whole is lost."""
    curves = tmp_path / "curves.jsonl"
    append_row(curves, measured[1].model_copy(update={"run": "other"}))

    def act(file: Path, damage) -> None:
        def reads() -> None:
            before = read_rows(curves)
            drop_torn_line(curves)
            assert read_rows(curves) == before

        works_or_one_line(reads)

    damaged([curves], act, 1.0)


@pytest.mark.slow
def test_reports(measured, laboratory, tmp_path):
    """Of curves, runs, their losses and prices."""
    curves = tmp_path / "curves.jsonl"
    runs = tmp_path / "runs"
    name = laboratory.made("ddpm").name
    shutil.copytree(laboratory.made("ddpm"), runs / name)
    files = [
        curves,
        *(file for file in files_of(runs) if file.suffix in (".yaml", ".json", ".jsonl")),
    ]

    def act(file: Path, damage) -> None:
        works_or_one_line(
            lambda: json.dumps(collect(curves, runs, [1], 0, lab.load), allow_nan=False)
        )

    assert works_or_one_line(lambda: collect(curves, runs, [1], 0, lab.load))
    damaged(files, act, 0.5)


def test_cards(measured, tmp_path):
    folder = tmp_path / "card"
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps({"rows": [measured[1].model_dump(mode="json")]}))
    assert read_card(folder).rows
    damaged([folder / "card.json"], lambda *_: works_or_one_line(lambda: read_card(folder)), 0.5)


@pytest.mark.slow
def test_studies(tmp_path, monkeypatch):
    """Notes, tasks and configs of a study that was run."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    file = write_study(tmp_path, images=64)
    run_here(file)
    tasks = sorted(tmp_path.glob("runs/ablations/study/cells/*.yaml"))
    notes = [task.with_suffix(".json") for task in tasks]
    assert tasks and all(note.is_file() for note in notes)

    def act(broken: Path, damage) -> None:
        if broken in tasks:
            works_or_one_line(lambda: parse_task(broken))
            return

        def plan() -> None:
            planned = read_plan(file, [])
            plan_words(planned.study, planned.steps, planned.runs)

        works_or_one_line(plan)

    def parse_task(task: Path) -> None:
        values = parse(Task, read_config(task), str(task))
        resolved(values.run, str(task))
        read_note(Path(values.note), values.sweep)

    configs = [file, tmp_path / "configs" / "digits" / "tiny.yaml"]
    prices = sorted(tmp_path.glob("runs/ablations/*/checkpoints/*/price.json"))
    damaged([*configs, *tasks, *notes, *prices], act, 0.5)


@pytest.mark.slow
def test_exports(laboratory, tmp_path):
    """A folder in diffusers' format that this repository wrote."""
    folder = tmp_path / "export"
    export(lab.load(laboratory.made("ddpm")), folder)
    assert works_or_one_line(lambda: lab.load(folder))
    damaged(files_of(folder), lambda *_: works_or_one_line(lambda: lab.load(folder)), 0.3)
