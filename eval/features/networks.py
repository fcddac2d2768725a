"""Feature networks by name, for critics that see features: maps [B, C, h, w] of several levels of an
extractor or a published backbone, differentiable in the image.

Nothing is downloaded: weights are those that the extractor has, or that torchvision's or timm's own
loaders have left in their caches.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError, nearest, reason
from core.files import load_tensors
from core.model import ModelSpec
from eval.features.classifiers import CLASSIFIERS, load_classifier
from eval.features.extractors import EXTRACTORS, InceptionExtractor, weights_file
from eval.features.inception import inception_network

LEVELS = 4  # the coarsest ones that are kept
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224  # that the backbones of torchvision were trained at

Prepare = Callable[[Tensor], Tensor]


class Levels(nn.Module):
    """images [B, C, S, S] in [-1, 1] -> the last map of each spatial size of layers that follow each
    other, coarsest LEVELS sizes; widths: their channels. Frozen, in eval mode.

    Args:
        prepare: what the layers are given in place of the images.
        shape: of one image, for finding the levels.
    """

    def __init__(self, layers: list[nn.Module], prepare: Prepare, shape: tuple[int, ...]):
        super().__init__()
        self.layers, self.prepare = nn.ModuleList(layers), prepare
        self.eval().requires_grad_(False)
        self.kept: set[int] = set()
        with torch.no_grad():
            maps = self._all(torch.zeros(1, *shape))
        last = {h.shape[-1]: i for i, h in enumerate(maps) if h.shape[-1] > 1}
        self.kept = set(sorted(last.values())[-LEVELS:])
        self.widths = tuple(h.shape[1] for i, h in enumerate(maps) if i in self.kept)

    def _all(self, images: Tensor) -> list[Tensor]:
        h, maps = self.prepare(images), []
        for layer in self.layers:
            h = layer(h)
            maps.append(h)
        return maps

    def forward(self, images: Tensor) -> list[Tensor]:
        return [h for i, h in enumerate(self._all(images)) if i in self.kept]


class TimmLevels(nn.Module):
    """The same of a timm model that was built with features_only."""

    def __init__(self, model: nn.Module, prepare: Prepare):
        super().__init__()
        self.model, self.prepare = model.eval().requires_grad_(False), prepare
        self.widths = tuple(model.feature_info.channels()[-LEVELS:])

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model(self.prepare(images))[-LEVELS:]


def feature_network(name: str, spec: ModelSpec, device: torch.device | str = "cpu") -> nn.Module:
    """The network of that name for samples of `spec`: an extractor's name, "torchvision/NAME" or
    "timm/NAME".

    Raises:
        UserError: no such network, one that does not read these samples, or weights that are not
            here.
    """
    if spec.codec != "pixels":
        raise UserError(
            f"features of '{name}' are of images, and this model is of other data: take "
            "method.features=teacher"
        )
    library, slash, which = name.partition("/")
    if not slash and name in CLASSIFIERS:
        found = _classifier(name, spec)
    elif not slash and issubclass(EXTRACTORS.get(name, object), InceptionExtractor):
        found = _inception(spec)
    elif slash and library in BACKBONES:
        found = BACKBONES[library](which, spec)
    else:
        images = {n for n, kind in EXTRACTORS.items() if kind.reads == torch.uint8}
        raise UserError(
            f"unknown features '{name}'{nearest(name, images)}, or torchvision/NAME or timm/NAME"
        )
    return found.to(device)


def _classifier(name: str, spec: ModelSpec) -> nn.Module:
    classifier, _ = load_classifier(name)
    side = classifier.spec.side
    if (spec.channels, spec.side) != (1, side):
        raise UserError(
            f"features of '{name}' are of images 1x{side}x{side}, and these are {spec.channels}x"
            f"{spec.side}x{spec.side}: choose others"
        )
    return Levels(list(classifier.body)[:-1], nn.Identity(), spec.shape)  # the last one flattens


def _inception(spec: ModelSpec) -> nn.Module:
    network = inception_network(weights_file())
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as resize,
    )

    def prepare(images: Tensor) -> Tensor:
        side = network.INPUT_IMAGE_SIZE
        pixels = resize(_rgb(127.5 * (images + 1)), size=(side, side), align_corners=False)
        return (pixels - 128) / 128

    children = dict(network.named_children())  # in the order of the forward
    layers = list(children)[: list(children).index("AvgPool")]
    return Levels([children[layer] for layer in layers], prepare, spec.shape)


def _torchvision(name: str, spec: ModelSpec) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(torchvision.models)
    if name not in names:
        raise UserError(f"torchvision has no model '{name}'{nearest(name, names)}")
    release = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(release.url).name
    if not file.is_file():
        raise UserError(
            f"the weights of torchvision/{name} are not here: put {release.url} into {file.parent}"
        )
    model = torchvision.models.get_model(name, weights=None)
    try:
        model.load_state_dict(load_tensors(file, f"is not a file of weights of {name}"))
    except RuntimeError as error:
        raise UserError(f"{file} does not fit torchvision/{name}: {reason(error)}") from error
    return Levels(
        _layers_of(model, name), _normalised(IMAGENET_MEAN, IMAGENET_STD, SIDE), spec.shape
    )


def _layers_of(model: nn.Module, name: str) -> list[nn.Module]:
    """The layers of a torchvision classifier that follow each other, to the last map."""
    if isinstance(getattr(model, "features", None), nn.Sequential):
        return list(model.features)
    if hasattr(model, "layer4"):  # ResNets
        children = dict(model.named_children())
        return [children[layer] for layer in list(children)[: list(children).index("avgpool")]]
    raise UserError(
        f"torchvision/{name} is not a chain of maps, such as resnet18 or vgg16: choose another, "
        "or timm/NAME"
    )


def _timm(name: str, spec: ModelSpec) -> nn.Module:
    try:
        import timm
        from huggingface_hub import try_to_load_from_cache
    except ImportError as error:
        raise UserError(f"features timm/{name} need the package timm: pip install timm") from error
    if not timm.is_model(name):
        raise UserError(f"timm has no model '{name}'{nearest(name, timm.list_models())}")
    release = timm.get_pretrained_cfg(name)
    file = release and release.hf_hub_id and try_to_load_from_cache(
        release.hf_hub_id, "model.safetensors"
    )  # fmt: skip
    if not isinstance(file, str):
        raise UserError(
            f"the weights of timm/{name} are not in the cache of huggingface_hub: where there is a "
            f"network, huggingface-cli download {release.hf_hub_id if release else name}"
        )
    model = timm.create_model(
        name, pretrained=True, features_only=True, pretrained_cfg_overlay={"file": file}
    )
    side = release.input_size[-1]
    return TimmLevels(model, _normalised(release.mean, release.std, side))


BACKBONES = {"torchvision": _torchvision, "timm": _timm}


def _rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _normalised(mean: tuple[float, ...], std: tuple[float, ...], side: int) -> Prepare:
    """[-1, 1] to what a backbone was trained on, at its side."""

    def prepare(images: Tensor) -> Tensor:
        centre, width = (images.new_tensor(v).view(1, 3, 1, 1) for v in (mean, std))
        pixels = _rgb((images + 1) / 2)
        pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
        return (pixels - centre) / width

    return prepare
