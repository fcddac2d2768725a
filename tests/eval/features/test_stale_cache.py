"""torch-fidelity's cache knows names, not contents: a changed reference or extractor under an old
name gives the old number.

Each test first shows the trap in the package as it is, then that our guard is not in it; each fails
if the guard becomes a name again.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.data import load_data
from eval.features.classifiers import load_classifier, save_classifier
from eval.features.extractors import ClassifierExtractor, make_extractor
from eval.features.fidelity import torch_fidelity
from eval.metrics.distances import frechet_distance, statistics
from eval.metrics.reference import reference_for
from tests.helpers.images import Images


@pytest.fixture
def data():
    whole = load_data("digits", "test")
    return replace(whole, images=whole.images[:200], labels=whole.labels[:200])


def test_changed_reference_under_the_same_name(data, tmp_path):
    test = load_data("digits", "train").images[:200]
    changed = replace(data, images=255 - data.images)
    extractor = make_extractor("digits-cnn")
    package = torch_fidelity()

    def theirs(images) -> float:
        return package.calculate_metrics(
            input1=Images(test), input2=Images(images), input2_cache_name="reference", feature_extractor="digits-cnn",
            fid=True, cuda=False, cache=True, cache_root=str(tmp_path / "theirs"), verbose=False, save_cpu_ram=True,
        )["frechet_inception_distance"]  # fmt: skip

    assert theirs(data.images) == theirs(changed.images)  # the trap

    def ours(reference) -> float:
        entry = reference_for(reference, extractor, tmp_path / "ours")
        return frechet_distance(statistics(extractor(test)), entry.statistics)

    before, after = ours(data), ours(changed)
    assert before == pytest.approx(theirs(data.images), rel=1e-3)
    assert after > 3 * before
    assert after == pytest.approx(
        frechet_distance(*(statistics(extractor(i)) for i in (test, changed.images))), rel=1e-6
    )


def test_changed_weights_under_the_same_name(data, tmp_path):
    classifier, metadata = load_classifier("digits-cnn")
    before = ClassifierExtractor("digits-cnn")
    with torch.no_grad():
        classifier.embed.weight *= 2
        classifier.embed.bias *= 2
    file = tmp_path / "other.safetensors"
    save_classifier(classifier, file, metadata)
    after = ClassifierExtractor("digits-cnn", weights=file)
    assert before.name == after.name and before.sha256 != after.sha256
    first, second = (reference_for(data, e, tmp_path / "cache") for e in (before, after))
    assert torch.allclose(second.features, 2 * first.features, rtol=1e-2, atol=1e-2)


def test_other_split_of_the_same_data(tmp_path):
    extractor = make_extractor("digits-cnn")
    train, test = (
        reference_for(load_data("digits", s), extractor, tmp_path) for s in ("train", "test")
    )
    assert (train.size, test.size) == (1348, 449) and not (
        train.statistics.mean == test.statistics.mean
    ).all()


def test_registered_again_is_not_an_error():
    """The package raises when a name is registered twice; importing our room twice must not."""
    package = torch_fidelity()
    known = package.registry.FEATURE_EXTRACTORS_REGISTRY["digits-cnn"]
    with pytest.raises(ValueError, match="already registered"):
        package.register_feature_extractor("digits-cnn", known)
    torch_fidelity()
    assert package.registry.FEATURE_EXTRACTORS_REGISTRY["digits-cnn"] is known
