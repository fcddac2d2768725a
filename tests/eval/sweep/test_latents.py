"""Sweeps over models in latents: what the rows say, and the floor of reconstructions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.data import load_data
from eval.curves.plots import plot_all
from eval.curves.series import by_protocol, floor_of, floors_of
from eval.curves.table import text_tables
from eval.curves_file import read_rows
from eval.features.extractors import make_extractor
from eval.metrics.distances import frechet_distance, statistics
from eval.metrics.reference import balanced_choice
from lab import load, measure
from tests.helpers.latents import train_autoencoder, train_in_latents
from tests.helpers.small_sweep import config
from tests.helpers.tiny import train_tiny


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """The curves of one teacher on pixels and two in the latents of one autoencoder."""
    folder = tmp_path_factory.mktemp("latents")
    train_autoencoder(folder / "autoencoder")
    train_tiny(folder / "pixels", images=128)
    for name in ("one", "two"):
        train_in_latents(folder / name, folder / "autoencoder", images=128)
    runs = [{"run": str(folder / name), "samplers": ["ddim"], "steps": [1, 3]}
            for name in ("pixels", "one", "two")]  # fmt: skip
    measure(config(folder, folder / "curves.jsonl", str(folder / "cache"), entries=runs))
    return folder


def test_rows_name_the_latents_and_count_no_decoding(swept):
    rows = read_rows(swept / "curves.jsonl")
    sha256 = load(swept / "one").model.codec.sha256
    words = f"latents 2x4x4 of autoencoder ({sha256[:12]})"
    assert {row.run: row.codec for row in rows if not row.is_floor} == {
        "pixels": None, "one": words, "two": words,
    }  # fmt: skip
    assert all(row.nfe == row.steps for row in rows if not row.is_floor)
    assert all(row.dataset == "digits" for row in rows)


def test_reconstructions_are_measured_once_an_autoencoder(swept):
    rows = [row for row in read_rows(swept / "curves.jsonl") if row.is_floor]
    assert [(row.method, row.run) for row in rows] == [
        ("floor", "digits test"), ("reconstructions", "digits test through autoencoder"),
    ]  # fmt: skip
    codec, test, train = (
        load(swept / "one").model.codec,
        load_data("digits", "test"),
        load_data("digits"),
    )
    chosen = test.images[balanced_choice(test.labels, 30)]
    extractor = make_extractor("digits-cnn", torch.device("cpu"))
    given = [statistics(extractor(images)) for images in
             (codec.decode(codec.encode(chosen)), train.images)]  # fmt: skip
    assert rows[1].fid == pytest.approx(frechet_distance(*given), rel=1e-4)
    assert rows[1].fid > rows[0].fid  # what little training there was left them poor


def test_reconstructions_are_of_the_test_images_whatever_the_reference(swept, tmp_path):
    """Against themselves too; and they can be left out."""
    given = {"out": tmp_path / "curves.jsonl", "cache": str(swept / "cache"), "reference": "test",
             "entry": {"samplers": ["ddim"], "steps": [1]}}  # fmt: skip
    rows = measure(config(swept / "one", floor=False, **given))
    (row,) = (row for row in rows if row.is_floor)
    assert row.is_reconstruction and row.reference == "digits test"
    codec, test = load(swept / "one").model.codec, load_data("digits", "test")
    chosen = test.images[balanced_choice(test.labels, 30)]
    extractor = make_extractor("digits-cnn", torch.device("cpu"))
    given_back = statistics(extractor(codec.decode(codec.encode(chosen))))
    wanted = frechet_distance(given_back, statistics(extractor(test.images)))
    assert row.fid == pytest.approx(wanted, rel=1e-4)
    given["out"] = tmp_path / "none.jsonl"
    rows = measure(config(swept / "one", floor=False, reconstructions=False, **given))
    assert not any(row.is_floor for row in rows)


def test_reconstructions_are_drawn_beside_the_floor(swept, tmp_path):
    rows = read_rows(swept / "curves.jsonl")
    (group,) = by_protocol(rows)
    assert [row.is_reconstruction for row in floors_of(group)] == [False, True]
    assert floor_of(group).method == "floor"
    assert floor_of(reversed(group)).method == "floor"
    table = text_tables(rows)
    assert "floor: digits test (n = 30)" in table
    assert "reconstructions: digits test through autoencoder (n = 30)" in table
    plot_all(rows, swept, tmp_path)
    drawn = (tmp_path / "curves.svg").read_text(encoding="utf-8")
    assert "<!-- reconstructions: digits test through autoencoder" in drawn
