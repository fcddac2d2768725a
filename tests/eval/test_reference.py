"""The reference cache: another entry for other data or other weights, and nothing damaged is ever used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.data import load_data
from eval.extractors import make_extractor
from eval.metrics import statistics
from eval.reference import cache_file, reference_for


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
        assert (got.statistics.mean == expected.mean).all() and (got.statistics.cov == expected.cov).all()
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
    assert (again.statistics.cov == good.statistics.cov).all() and torch.equal(again.features, good.features)
    reference_for(data, extractor, tmp_path, counting)
    assert counting.calls == 1
