"""The reference cache: another entry for other data or other weights, and nothing damaged is ever
used."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from accelerate import PartialState
from filelock import FileLock

import eval.metrics.reference
from core.data import load_data
from eval.curves.table import markdown_tables
from eval.curves.trade_off import trade_off_tables
from eval.curves_file import read_rows
from eval.features.extractors import make_extractor
from eval.metrics.distances import frechet_distance, statistics
from eval.metrics.reference import cache_file, reference_for, shared_reference, ship
from lab import measure
from tests.helpers.command_lines import run_script
from tests.helpers.small_sweep import config


@pytest.fixture
def data():
    return load_data("digits", "test")


class Counting:
    """Calls to an extractor."""

    def __init__(self, extractor):
        self.extractor, self.calls = extractor, 0

    def __call__(self, images):
        self.calls += 1
        return self.extractor(images)


def test_computed_once_and_right(tmp_path, data):
    extractor = make_extractor("digits-cnn")
    counting = Counting(extractor)
    first = reference_for(data, extractor, tmp_path, counting)
    second = reference_for(data, extractor, tmp_path, counting)
    assert counting.calls == 1 and len(list(tmp_path.iterdir())) == 1
    expected = statistics(extractor(data.images))
    for got in (first, second):
        assert (got.statistics.mean == expected.mean).all() and (
            got.statistics.cov == expected.cov
        ).all()
        assert got.features.shape == (449, 64) and got.sha256 == data.sha256


def test_changed_data_or_weights_make_another_entry(tmp_path, data):
    extractor = make_extractor("digits-cnn")
    base = reference_for(data, extractor, tmp_path)
    images = data.images.clone()
    images[0, 0, 3, 3] ^= 128
    changed = reference_for(replace(data, images=images), extractor, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert not (changed.statistics.mean == base.statistics.mean).all()

    with torch.no_grad():
        extractor.classifier.embed.weight += 0.1
    extractor.sha256 = "0" * 64
    other = reference_for(data, extractor, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert not (other.statistics.mean == base.statistics.mean).all()


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_entry_is_computed_again(tmp_path, data, damage, capsys):
    extractor = make_extractor("digits-cnn")
    good = reference_for(data, extractor, tmp_path)
    file = cache_file(data, extractor, tmp_path)
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-1000] ^= 64
    file.write_bytes({"flipped": content, "cut": content[:-100], "empty": b""}[damage])
    counting = Counting(extractor)
    again = reference_for(data, extractor, tmp_path, counting)
    assert counting.calls == 1 and "damaged" in capsys.readouterr().err
    assert (again.statistics.cov == good.statistics.cov).all() and torch.equal(
        again.features, good.features
    )
    reference_for(data, extractor, tmp_path, counting)
    assert counting.calls == 1


def test_interrupted_computation_goes_on_after_its_last_part(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(
        eval.metrics.reference, "PART", 100
    )  # 449 images: 5 parts, the last one smaller
    extractor = make_extractor("digits-cnn")
    whole = reference_for(data, extractor, tmp_path / "whole")
    seen = []

    def killed(images):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(images)
        return extractor(images)

    with pytest.raises(KeyboardInterrupt):
        reference_for(data, extractor, tmp_path / "cut", killed)
    part = sorted((tmp_path / "cut").glob("*.parts/*"))[1]
    part.write_bytes(part.read_bytes()[:-1])  # and one of the three is damaged
    again = Counting(extractor)
    told = []
    resumed = reference_for(data, extractor, tmp_path / "cut", again, skip=told.append)
    assert told == [200]  # and the progress bar with it
    assert again.calls == 3 and "2 of 5 parts are there already" in capsys.readouterr().err
    assert (
        torch.equal(resumed.features, whole.features)
        and (resumed.statistics.cov == whole.statistics.cov).all()
    )
    assert [path.suffix for path in (tmp_path / "cut").iterdir()] == [".safetensors"]


def test_of_two_commands_one_computes(tmp_path, data, monkeypatch, capsys):
    """The other one, here in a thread, waits for the lock and then reads what was computed."""
    extractor = make_extractor("digits-cnn")
    path = cache_file(data, extractor, tmp_path)
    found = []
    waiting = threading.Thread(
        target=lambda: found.append(
            shared_reference(data, extractor, tmp_path, PartialState(cpu=True))
        )
    )
    with FileLock(path.with_name(f".{path.name}.lock")):
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive() and "waiting for it" in capsys.readouterr().err
        first = reference_for(data, extractor, tmp_path)
        monkeypatch.setattr(
            type(extractor), "_features", lambda *_: pytest.fail("it computed the reference again")
        )
    waiting.join(30)
    assert torch.equal(found[0].features, first.features)


def test_shipped_reference_measures_the_same_distance(
    run, cache, uninterrupted, tmp_path, monkeypatch
):
    """Without the images' features: no KID, precision and recall, which tables leave out."""
    monkeypatch.setattr(eval.metrics.reference, "SHIPPED", tmp_path / "shipped")
    train, extractor = load_data("digits", "train"), make_extractor("digits-cnn")
    file = ship(train, extractor, cache, tmp_path / "shipped")
    assert file.stat().st_size < 4 * (64 + 64 * 65 / 2) + 1000
    monkeypatch.setattr(
        type(extractor), "_features", lambda *_: pytest.fail("it computed the reference")
    )
    found = reference_for(train, extractor, tmp_path / "nothing")
    assert found.features is None and found.size == 1348
    monkeypatch.undo()
    monkeypatch.setattr(eval.metrics.reference, "SHIPPED", tmp_path / "shipped")

    out = tmp_path / "rows" / "curves.jsonl"
    measure(config(run, out, str(tmp_path / "empty")))
    assert not (tmp_path / "empty").exists()
    for got, expected in zip(read_rows(out), read_rows(uninterrupted), strict=True):
        assert got.fid == pytest.approx(expected.fid, rel=1e-4) and got.fid_std == pytest.approx(
            expected.fid_std, rel=1e-3
        )
        assert (got.kid, got.precision, got.recall) == (None, None, None)
        assert got.class_histogram == expected.class_histogram
    assert "| DDPM teacher, ddim | " in markdown_tables(
        read_rows(out)
    ) and "|  |  |" in trade_off_tables(read_rows(out))

    # of other data, or damaged, it is not used
    images = train.images.clone()
    images[0, 0, 3, 3] ^= 128
    assert (
        reference_for(replace(train, images=images), extractor, tmp_path / "other").features
        is not None
    )
    file.write_bytes(file.read_bytes()[:-1])
    assert reference_for(train, extractor, tmp_path / "again").features is not None


def test_ship_reference_command(tmp_path, monkeypatch):
    monkeypatch.setattr(eval.metrics.reference, "SHIPPED", tmp_path / "shipped")
    given = ("digits", "digits-cnn", "--split", "test", "--cache", str(tmp_path / "cache"))
    code, errors = run_script("scripts.maintain.ship_reference", *given)
    assert code == 0, errors
    (file,) = (tmp_path / "shipped").iterdir()
    data, extractor = load_data("digits", "test"), make_extractor("digits-cnn")
    stored = reference_for(data, extractor, tmp_path / "nothing")
    assert frechet_distance(stored.statistics, statistics(extractor(data.images))) < 1e-4
    code, errors = run_script("scripts.maintain.ship_reference", *given)
    assert code != 0 and f"{file} exists" in errors
