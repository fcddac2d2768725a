"""Feature extractors by name: what FID and its relatives are measured in."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from core.data import ImageData
from core.errors import UserError, nearest
from core.precision import exact_float32
from eval.features.classifiers import CLASSIFIERS, load_classifier, weights_path
from eval.features.inception import (
    DEFAULT_WEIGHTS,
    cached_release,
    inception_network,
    tensors_sha256,
)

INCEPTION = "inception-v3-compat"
INCEPTION_BFLOAT16 = "inception-v3-compat-bf16"
INCEPTION_WEIGHTS = (
    "FID_INCEPTION_WEIGHTS"  # environment variable: a file in torch-fidelity's format
)


class Extractor(ABC):
    """Images -> feature vectors.

    name, sha256: which features; width: their number D; metric_name: what the distance in them is
    called, for a Fréchet distance "FID" with Inception's as the literature means it and "FD" with
    any others'; batch_size: images at a time; reads: the type of data that it takes; kept: how many
    features of a reference are kept for what compares samples with samples.
    """

    name: str
    sha256: str
    width: int
    metric_name: str = "FD"
    batch_size: int = 500
    reads: torch.dtype = torch.uint8
    kept: int = 5000
    device: torch.device

    @abstractmethod
    def _features(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] on the device -> [B, D]."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, D] on the CPU, in batches, never in TensorFloat-32.

        Raises:
            UserError: images the extractor does not read.
        """
        if images.dtype != self.reads:
            kinds = {torch.uint8: "images", torch.float32: "points"}
            raise UserError(f"it reads {kinds[self.reads]}, and these are {kinds[images.dtype]}")
        with exact_float32():
            parts = [
                self._features(part.to(self.device)).float().cpu()
                for part in images.split(self.batch_size)
            ]
        return torch.cat(parts) if parts else torch.empty(0, self.width)


class ClassifierExtractor(Extractor):
    """One of our small classifiers; sha256 is that of its weights file."""

    def __init__(
        self, name: str, device: torch.device | str = "cpu", weights: str | Path | None = None
    ):
        path = Path(weights) if weights else weights_path(name)
        self.name, self.device = name, torch.device(device)
        classifier, self.metadata = load_classifier(name, path)
        self.classifier = classifier.to(self.device)
        self.width, self.num_classes = classifier.spec.features, classifier.spec.num_classes
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def _features(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)

    @torch.no_grad()
    def logits_of(self, features: Tensor) -> Tensor:
        """Features [N, D] -> class logits [N, num_classes], so that no image passes through the
        network twice."""
        with exact_float32():
            return self.classifier.head_logits(features.to(self.device)).cpu()

    def logits(self, images: Tensor) -> Tensor:
        """uint8 [N, 1, S, S] -> class logits [N, num_classes]."""
        return self.logits_of(self(images))


def weights_file(given: str | Path | None = None) -> Path:
    """The file of Inception weights: `given`, else the environment's FID_INCEPTION_WEIGHTS, else
    what scripts.fetch_inception wrote, else torch-fidelity's release in torch.hub's cache. Nothing
    is downloaded.

    Raises:
        UserError: the one that is named, or all of them, are not there.
    """
    if named := given or os.environ.get(INCEPTION_WEIGHTS):
        if not Path(named).is_file():
            raise UserError(
                f"Inception weights {named} do not exist: check extractor_weights and ${INCEPTION_WEIGHTS}"
            )
        return Path(named)
    places = (DEFAULT_WEIGHTS, cached_release())
    if found := next((file for file in places if file.is_file()), None):
        return found
    raise UserError(
        "the Inception weights are not here: python -m scripts.fetch_inception gets them; or set "
        f"${INCEPTION_WEIGHTS} (or extractor_weights) to a file; or choose one of the classifiers"
    )


class InceptionExtractor(Extractor):
    """The Inception network of the FID literature (TensorFlow, 2015-12-05), its pool of 2,048
    features, by torch-fidelity.

    weights: see weights_file. sha256 is that of the tensors that the features depend on, so it does
    not change with the file around them."""

    metric_name = "FID"
    batch_size = 64

    def __init__(
        self,
        name: str = INCEPTION,
        device: torch.device | str = "cpu",
        weights: str | Path | None = None,
    ):
        self.name, self.device, self.width = name, torch.device(device), 2048
        self.network = inception_network(weights_file(weights)).to(self.device)
        self.sha256 = tensors_sha256(self.network.state_dict())

    def _features(self, images: Tensor) -> Tensor:
        rgb = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return self.network(rgb.contiguous())[0]


class BFloat16InceptionExtractor(InceptionExtractor):
    """The same network in bfloat16: 2.6 times as fast on a processor that computes in it, with
    features 2.4 % off.

    Its FID is not quite the literature's (README, "Measuring"), so it has a name of its own and is
    never drawn with that.
    """

    def __init__(
        self,
        name: str = INCEPTION_BFLOAT16,
        device: torch.device | str = "cpu",
        weights: str | Path | None = None,
    ):
        super().__init__(name, device, weights)
        self.network = self.network.to(memory_format=torch.channels_last)

    def _features(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return super()._features(images)


class Points(Extractor):
    """Points as they are, for a distance between points. There are no weights, so sha256 is that of
    the name."""

    width = 2
    batch_size = 1_000_000
    reads = torch.float32
    kept = 100_000

    def __init__(
        self, name: str, device: torch.device | str = "cpu", weights: str | Path | None = None
    ):
        self.name, self.device = name, torch.device(device)
        self.sha256 = hashlib.sha256(name.encode()).hexdigest()

    def _features(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class SlicedWasserstein(Points):
    """Points, measured by the sliced 2-Wasserstein distance (eval/metrics/points.py)."""

    metric_name = "SW2"


class HistogramKL(Points):
    """Points, measured by the histogram KL against the exact density (eval/metrics/points.py)."""

    metric_name = "KL"


EXTRACTORS: dict[str, type[Extractor]] = {
    "sliced-wasserstein": SlicedWasserstein,
    "histogram-kl": HistogramKL,
    **{name: ClassifierExtractor for name in CLASSIFIERS},
    INCEPTION: InceptionExtractor,
    INCEPTION_BFLOAT16: BFloat16InceptionExtractor,
}


def make_extractor(
    name: str, device: torch.device | str = "cpu", weights: str | Path | None = None
) -> Extractor:
    """The extractor of that name. `weights`: a file in place of the shipped or downloaded one.

    Raises:
        UserError: unknown name, or weights that cannot be had.
    """
    if name not in EXTRACTORS:
        raise UserError(f"unknown extractor '{name}'{nearest(name, EXTRACTORS)}")
    return EXTRACTORS[name](name, device, weights)


def check_reads(extractor: Extractor, data: ImageData) -> None:
    """Raises UserError if `extractor` does not read these data."""
    try:
        extractor(data.images[:1])
    except (UserError, ValueError) as error:
        raise UserError(f"{extractor.name} on {data.name}: {error}") from error
