"""Folders of so few images that the metrics have too little to compare with."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from core.data import DataConfig
from core.errors import UserError
from lab import measure
from tests.helpers.pictures import save
from tests.helpers.small_sweep import config
from tests.helpers.tiny import train_tiny


@pytest.fixture
def swept(tmp_path):
    """count -> the rows of a sweep over a run that was trained on so many images."""
    rng = np.random.default_rng(0)

    def sweep(count: int, **changes) -> list[dict]:
        images, run = tmp_path / "images", tmp_path / "run"
        for i in range(count):
            save(images / f"{i:02}.png", rng.integers(0, 256, (8, 8), dtype=np.uint8))
        data = {"name": "folder", "root": str(images), "side": 8}
        train_tiny(run, images=64, data=data)
        out, cache = tmp_path / "out" / "curves.jsonl", str(tmp_path / "cache")
        return measure(config(run, out, cache, {"samplers": ["ddim"]}, n=8, **changes))

    return sweep


@pytest.mark.parametrize("count, test", [(9, 0), (10, 1), (25, 2), (39, 3)])
def test_a_floor_of_too_few_images_says_what_to_do(swept, tmp_path, count, test):
    """Before anything is measured or written."""
    with pytest.raises(
        UserError,
        match=rf"'images': its test split, which the floor is measured with, is too small: {test} "
        "images?, and the metrics need at least 4: add images, or set floor=false",
    ):
        swept(count)
    assert not (tmp_path / "out" / "curves.jsonl").exists() and not (tmp_path / "cache").exists()


def test_a_reference_of_too_few_images(swept):
    with pytest.raises(UserError, match="its test split, the reference, is too small: 3 images"):
        swept(35, reference="test")


@pytest.mark.parametrize("count, changes, floors", [(40, {}, 1), (10, {"floor": False}, 0)])
def test_enough_images_are_measured(swept, count, changes, floors):
    """With what the message advises."""
    rows = swept(count, **changes)
    assert [row.method for row in rows] == ["ddpm", "ddpm"] + ["floor"] * floors
    for row in rows:
        assert all(
            math.isfinite(getattr(row, key)) for key in ("fid", "kid", "precision", "recall")
        )
    assert floors == 0 or rows[-1].n == 4


def test_images_that_no_picture_can_show_are_refused_ahead(tmp_path, monkeypatch):
    """Of five channels: before anything is sampled, and with the way to measure them all the
    same."""
    monkeypatch.setattr("eval.sweep.run._check_fit", lambda *_: None)
    train_tiny(tmp_path / "run", images=64)
    original = DataConfig.load

    def five(self, split="train"):
        data = original(self, split)
        return replace(data, images=data.images.expand(-1, 5, -1, -1))

    monkeypatch.setattr(DataConfig, "load", five)
    monkeypatch.setattr("eval.sweep.run.check_reads", lambda *_: None)
    out, cache = tmp_path / "out" / "curves.jsonl", str(tmp_path / "cache")
    values = (tmp_path / "run", out, cache, {"samplers": ["ddim"]})
    with pytest.raises(UserError, match="5 channels cannot be written .*: give keep_samples=0"):
        measure(config(*values, n=8, keep_samples=4))
    assert not out.exists()
