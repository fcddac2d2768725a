"""Small classifiers whose penultimate layer is the feature space where Inception's does not fit:
8x8 and 28x28 grey images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import UserError
from core.files import whole_file
from core.tensors import open_tensors

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ClassifierSpec:
    """One classifier and the recipe that trained it.

    widths: channels after each halving of the side; features: width of the penultimate layer;
    shift: the augmentation, at most so many pixels in each direction. Nothing else is augmented: a
    metric should see a mirrored shoe.
    """

    dataset: str
    side: int
    widths: tuple[int, ...]
    features: int
    epochs: int
    shift: int
    num_classes: int = 10
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 0.02
    dropout: float = 0.2
    seed: int = 0


CLASSIFIERS: dict[str, ClassifierSpec] = {
    "digits-cnn": ClassifierSpec("digits", 8, (32, 64), features=64, epochs=60, shift=1),
    "fashion-cnn": ClassifierSpec(
        "fashion_mnist", 28, (16, 32, 64), features=128, epochs=8, shift=1
    ),
}


class Classifier(nn.Module):
    """Two convolutions and a pooling for each width, then one linear layer: its output, before the
    activation, is the feature vector. uint8 [N, 1, S, S] in, float32 out."""

    def __init__(self, spec: ClassifierSpec):
        super().__init__()
        self.spec = spec
        layers, before, side = [], 1, spec.side
        for width in spec.widths:
            layers += [
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            before, side = width, side // 2
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.embed = nn.Linear(before * side * side, spec.features)
        self.drop = nn.Dropout(spec.dropout)
        self.head = nn.Linear(spec.features, spec.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """uint8 [N, 1, S, S] -> [N, D].

        Raises:
            UserError: images of another size or number of channels than the classifier was trained
                on.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != (1, self.spec.side, self.spec.side):
            raise UserError(
                f"the classifier for {self.spec.dataset} reads uint8 images of shape (1, {self.spec.side}, {self.spec.side}), "
                f"not {images.dtype} {tuple(images.shape[1:])}: choose another extractor (inception-v3-compat reads any)"
            )
        return self.embed(self.body(images.float() / 127.5 - 1))

    def head_logits(self, features: Tensor) -> Tensor:
        """[N, D] -> [N, num_classes]."""
        return self.head(self.drop(F.relu(features)))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, 1, S, S] -> logits [N, num_classes]."""
        return self.head_logits(self.features(images))


def weights_path(name: str) -> Path:
    """Where the shipped weights of a classifier lie."""
    return WEIGHTS / f"{name}.safetensors"


def _stored(tensor: Tensor) -> Tensor:
    # Matrices and kernels in half precision keep the files small; the batch norms' vectors weigh
    # nothing.
    return (tensor.half() if tensor.ndim > 1 else tensor).contiguous()


def round_to_stored(classifier: Classifier) -> None:
    """Rounds the weights to what the file will hold, so that what is measured is what is
    shipped."""
    state = {
        k: v if not v.is_floating_point() else _stored(v).float()
        for k, v in classifier.state_dict().items()
    }
    classifier.load_state_dict(state)


def save_classifier(classifier: Classifier, path: Path, metadata: dict[str, str]) -> None:
    """Weights with `metadata` (test accuracy, recipe) in the header."""
    tensors = {
        k: _stored(v.detach().cpu())
        for k, v in classifier.state_dict().items()
        if v.is_floating_point()
    }
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata=metadata)


def load_classifier(name: str, path: Path | None = None) -> tuple[Classifier, dict[str, str]]:
    """The shipped classifier of that name, in eval mode without gradients, and the metadata of its
    weights file.

    Raises:
        UserError: weights missing, damaged, or of another architecture.
    """
    spec = CLASSIFIERS[name]
    path = path or weights_path(name)
    again = f"git checkout it, or train it again: python -m scripts.maintain.train_classifier {spec.dataset}"
    try:
        with open_tensors(path) as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}
    except OSError as error:
        raise UserError(
            f"weights of {name}, {path}, are missing or damaged ({error}): {again}"
        ) from error
    classifier = Classifier(spec)
    counters = {k: v for k, v in classifier.state_dict().items() if not v.is_floating_point()}
    try:
        classifier.load_state_dict(state | counters)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {name}: {again}") from error
    return classifier.eval().requires_grad_(False), metadata


@torch.no_grad()
def accuracy(
    classifier: Classifier, images: Tensor, labels: Tensor, batch_size: int = 500
) -> float:
    """Share of images [N, 1, S, S] that an eval-mode classifier gives their label [N]."""
    hits = [
        (classifier(x).argmax(1) == y).sum()
        for x, y in zip(images.split(batch_size), labels.split(batch_size))
    ]
    return float(torch.stack(hits).sum()) / len(images)


def recipe(spec: ClassifierSpec) -> str:
    """The recipe as JSON, for a weights file's header."""
    return json.dumps(spec.__dict__)
