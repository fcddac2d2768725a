"""torch-fidelity, imported where it is needed and nowhere else, with our classifiers registered in
it."""

from __future__ import annotations

from types import ModuleType

import torch

from core.errors import UserError
from eval.features.classifiers import CLASSIFIERS, load_classifier


def torch_fidelity() -> ModuleType:
    """The package, complete with the submodules used here.

    Raises:
        UserError: it, or the torchvision that it imports, does not load.
    """
    try:
        import torch_fidelity
        import torch_fidelity.metric_fid
        import torch_fidelity.metric_kid
        import torch_fidelity.metric_prc
        import torch_fidelity.registry
        import torch_fidelity.utils
    except (
        ImportError,
        RuntimeError,
    ) as error:  # a torchvision built for another torch raises RuntimeError
        raise UserError(
            f"metrics need torch-fidelity, which does not import here ({' '.join(str(error).split())[:120]}): "
            "pip install 'torch-fidelity>=0.4', with a torch and torchvision from the same index"
        ) from error
    register_classifiers(torch_fidelity)
    return torch_fidelity


def register_classifiers(package: ModuleType) -> None:
    """Makes `calculate_metrics(feature_extractor="digits-cnn", ...)` work; does nothing the second
    time."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class ClassifierFeatures(FeatureExtractorBase):
        """A shipped classifier behind torch-fidelity's contract: uint8 [B, 1, S, S] -> its
        penultimate layer."""

        def __init__(self, name: str, features_list: list[str], **kwargs):
            super().__init__(name, features_list)
            self.classifier = load_classifier(name)[0]

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> None:
            return None

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            features = self.classifier.features(images)
            given = {"features": features, "logits": self.classifier.head_logits(features)}
            return tuple(given[name] for name in self.features_list)

    known = package.registry.FEATURE_EXTRACTORS_REGISTRY
    for name in CLASSIFIERS:
        if name not in known:  # registering twice raises
            package.register_feature_extractor(name, ClassifierFeatures)
