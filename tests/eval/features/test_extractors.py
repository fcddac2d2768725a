"""The shipped classifiers and the extractors around them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from core.data import ImageData, load_data
from core.errors import UserError
from eval.features.classifiers import CLASSIFIERS, accuracy, load_classifier, weights_path
from eval.features.extractors import (
    INCEPTION_WEIGHTS,
    InceptionExtractor,
    check_reads,
    make_extractor,
)
from eval.features.fidelity import torch_fidelity
from eval.metrics.distances import frechet_distance, statistics
from tests.helpers.images import Images


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shipped_weights_reach_their_stated_accuracy(name):
    classifier, metadata = load_classifier(name)
    try:
        test = load_data(CLASSIFIERS[name].dataset, "test")
    except UserError as error:
        pytest.skip(str(error))
    reached = accuracy(classifier, test.images, test.labels)
    assert reached == pytest.approx(float(metadata["test_accuracy"]), abs=2 / len(test))
    assert reached > {"digits-cnn": 0.97, "fashion-cnn": 0.92, "emoji-cnn": 0.99}[name]
    for what, _ in CLASSIFIERS[name].attributes:
        reached = accuracy(classifier, test.images, test.attributes[what].labels, of=what)
        stated = float(metadata[f"test_accuracy_{what}"])
        assert reached == pytest.approx(stated, abs=2 / len(test)) and reached > 0.9
    assert weights_path(name).stat().st_size < 500_000
    assert json.loads(metadata["recipe"])["features"] == CLASSIFIERS[name].features


def test_features_do_not_depend_on_the_batch():
    images = load_data("digits", "test").images[:50]
    extractor = make_extractor("digits-cnn")
    whole = extractor(images)
    extractor.batch_size = 7
    assert whole.shape == (50, 64) and torch.allclose(whole, extractor(images), atol=1e-4)
    assert torch.allclose(extractor.logits(images), extractor.classifier(images), atol=1e-4)


def test_registered_with_torch_fidelity():
    """calculate_metrics by name, through the package's own data loading and caching, gives our
    number."""

    package = torch_fidelity()
    torch_fidelity()  # registering twice must not raise
    train, test = load_data("digits", "train").images, load_data("digits", "test").images
    theirs = package.calculate_metrics(
        input1=Images(test), input2=Images(train), feature_extractor="digits-cnn", fid=True, cuda=False, cache=False,
        verbose=False, save_cpu_ram=True, batch_size=500,
    )  # fmt: skip
    extractor = make_extractor("digits-cnn")
    ours = frechet_distance(statistics(extractor(test)), statistics(extractor(train)))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours > 0.1


def test_refusals(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # away from weights that scripts.fetch_inception may have written
    with pytest.raises(UserError, match="did you mean 'digits-cnn'"):
        make_extractor("digit-cnn")
    large = ImageData(
        "fashion_mnist", "train", torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1), 10
    )
    with pytest.raises(
        UserError, match=r"digits-cnn on fashion_mnist: .*\(1, 8, 8\).*not .*\(1, 28, 28\)"
    ):
        check_reads(make_extractor("digits-cnn"), large)
    points = load_data("checkerboard", "test")
    with pytest.raises(UserError, match="digits-cnn on checkerboard: it reads images, and these"):
        check_reads(make_extractor("digits-cnn"), points)
    with pytest.raises(UserError, match="reads points, and these are images"):
        check_reads(make_extractor("histogram-kl"), large)
    broken = tmp_path / "w.safetensors"
    broken.write_bytes(weights_path("digits-cnn").read_bytes()[:-50])
    with pytest.raises(UserError, match="missing or damaged"):
        load_classifier("digits-cnn", broken)
    with pytest.raises(UserError, match="does not fit"):
        load_classifier("digits-cnn", weights_path("fashion-cnn"))

    monkeypatch.setenv(INCEPTION_WEIGHTS, str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match="none.pth do not exist"):
        make_extractor("inception-v3-compat")
    monkeypatch.delenv(INCEPTION_WEIGHTS)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    with pytest.raises(UserError, match=f"not here.*fetch_inception.*{INCEPTION_WEIGHTS}"):
        InceptionExtractor()


def test_inception_on_grey_images(tmp_path, monkeypatch):
    """Random weights through the real network: the plumbing, without the download."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    file = tmp_path / "weights.pth"
    with monkeypatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(
            theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None
        )
        state = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()
    torch.save(state, file)
    monkeypatch.setenv(INCEPTION_WEIGHTS, str(file))
    extractor = make_extractor("inception-v3-compat")
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    features = extractor(images)
    assert (extractor.metric_name, extractor.width, features.shape) == ("FID", 2048, (2, 2048))
    assert torch.equal(features, extractor.network(images.repeat(1, 3, 1, 1))[0])
    fast = make_extractor("inception-v3-compat-bf16")  # same weights, other precision, another name
    assert (fast.metric_name, fast.sha256, fast.name) == (
        "FID",
        extractor.sha256,
        "inception-v3-compat-bf16",
    )
    error = (fast(images) - features).norm() / features.norm()
    assert 1e-4 < error < 5e-2  # bfloat16 rounds to 4e-3, a hundred layers of it
    state["fc.bias"] += 1  # what the features do not depend on does not change the hash
    torch.save(state, file)
    assert make_extractor("inception-v3-compat").sha256 == extractor.sha256
    state["Mixed_7c.branch1x1.bn.bias"][0] += 1
    torch.save(state, file)
    assert make_extractor("inception-v3-compat").sha256 != extractor.sha256


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import sys, scripts.evaluate, scripts.plot, scripts.sample; "
    code += "sys.exit(any(m in sys.modules for m in ('torch_fidelity', 'torchvision', 'matplotlib', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_missing_torch_fidelity_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.metric_prc", None)
    with pytest.raises(UserError, match="pip install 'torch-fidelity>=0.4'"):
        torch_fidelity()
