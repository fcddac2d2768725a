"""Feature networks for critics: the maps are those on which the extractors and backbones themselves
rest, images pass gradients, and what cannot be had is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from core.data import load_data
from core.errors import UserError
from core.model import ModelSpec
from eval.features import networks
from eval.features.classifiers import load_classifier
from lab import feature_network


def spec_of(**changes) -> ModelSpec:
    values = {"channels": 1, "side": 28, "num_classes": 0} | changes
    return ModelSpec(path="vp-cosine", **values)


def test_a_classifiers_maps_are_what_its_features_rest_on():
    classifier, _ = load_classifier("digits-cnn")
    images = load_data("digits", "test").images[:20]
    network = feature_network("digits-cnn", spec_of(side=8))
    x = (images.float() / 127.5 - 1).requires_grad_(True)
    maps = network(x)
    assert network.widths == tuple(h.shape[1] for h in maps)
    assert [h.shape[-1] for h in maps] == [8, 4, 2]
    assert torch.equal(classifier.embed(maps[-1].flatten(1)), classifier.features(images))
    for h in maps:
        (slope,) = torch.autograd.grad(h.sum(), x, retain_graph=True)
        assert float(slope.abs().sum()) > 0
    assert not any(p.requires_grad for p in network.parameters()) and not network.training


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 1), ("mobilenet_v3_small", 3)])
def test_a_torchvision_backbone_ends_in_its_own_classes(name, channels, hub):
    """The last map, through the rest of the network, gives its logits of the image as torchvision's
    own transforms prepare it."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    release = torchvision.models.get_model_weights(name).DEFAULT
    with pytest.raises(UserError, match=f"torchvision/{name} are not here: put https"):
        feature_network(f"torchvision/{name}", spec_of(channels=channels))
    torch.save(model.state_dict(), hub / Path(release.url).name)
    network = feature_network(f"torchvision/{name}", spec_of(channels=channels))
    pixels = torch.randint(0, 256, (2, channels, 28, 28), dtype=torch.uint8)
    prepare = release.transforms(resize_size=224)
    with torch.no_grad():
        maps = network(pixels.float() / 127.5 - 1)
        seen = prepare(pixels.expand(-1, 3, -1, -1).float() / 255)
        known = model(seen)
        rest = getattr(model, "classifier", None) or model.fc
        given = rest(model.avgpool(maps[-1]).flatten(1))
    assert torch.allclose(given, known, atol=1e-3 * float(known.abs().max()))
    assert len(maps) == networks.LEVELS and network.widths == tuple(h.shape[1] for h in maps)


def test_a_timm_backbone_shows_its_own_maps(tmp_path, monkeypatch):
    """Maps of a network of timm, whose weights lie in the cache."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    name = "resnet10t.c3_in1k"
    model = timm.create_model(name, pretrained=False).eval()
    with pytest.raises(UserError, match="not in the cache of huggingface_hub"):
        feature_network(f"timm/{name}", spec_of())
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: str(file))
    network = feature_network(f"timm/{name}", spec_of())
    release = timm.get_pretrained_cfg(name)
    x = torch.rand(2, 1, 28, 28) * 2 - 1
    with torch.no_grad():
        maps = network(x)
        seen = F.interpolate((x + 1) / 2, size=release.input_size[1:], mode="bilinear")
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (release.mean, release.std))
        known = model.forward_features((seen.expand(-1, 3, -1, -1) - mean) / std)
    assert torch.allclose(maps[-1], known, atol=1e-3 * float(known.abs().max()))
    assert network.widths == tuple(h.shape[1] for h in maps)


def test_inceptions_last_map_is_pooled_to_its_features(monkeypatch):
    torch_fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    with monkeypatch.context() as patch:  # its constructor asks for weights
        patch.setattr(torch_fidelity, "load_state_dict_from_url", lambda *args, **kwargs: None)
        patch.setattr(nn.Module, "load_state_dict", lambda *args, **kwargs: None)
        inception = torch_fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    monkeypatch.setattr(networks, "weights_file", lambda: None)
    monkeypatch.setattr(networks, "inception_network", lambda file: inception)
    network = feature_network("inception-v3-compat", spec_of())
    pixels = torch.randint(0, 256, (1, 1, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        maps = network(pixels.float() / 127.5 - 1)
        known = inception(pixels.expand(-1, 3, -1, -1).contiguous())[0]
    assert [h.shape[-1] for h in maps] == [71, 35, 17, 8]
    assert torch.allclose(maps[-1].mean((2, 3)), known, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fashion-cm", "unknown features 'fashion-cm' .did you mean 'fashion-cnn'"),
        ("sliced-wasserstein", "unknown features"),
        ("torchvision/resnet81", "no model 'resnet81'"),
        ("keras/vgg16", "unknown features 'keras/vgg16'"),
        ("digits-cnn", "are of images 1x8x8, and these are 1x28x28"),
    ],
)
def test_what_cannot_be_had_is_refused(name, said):
    with pytest.raises(UserError, match=said):
        feature_network(name, spec_of())


def test_points_have_no_feature_network():
    with pytest.raises(UserError, match="features=teacher"):
        feature_network("digits-cnn", spec_of(channels=2, side=1, codec="identity"))
