"""The networks by name. Each has a config with `name`, its sizes, and `build(channels, side,
num_classes)`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from core.networks.affine import AffineConfig
from core.networks.autoencoder_kl import AutoencoderKLConfig
from core.networks.convolutional import AutoencoderConfig, GeneratorConfig
from core.networks.diffusers import DiffusersConfig
from core.networks.dit import DiTConfig
from core.networks.mlp import MLPConfig
from core.networks.unet import UNetConfig

DEFAULT = "unet"


def _name_of(value: Any) -> Any:
    return value.get("name", DEFAULT) if isinstance(value, dict) else getattr(value, "name", None)


NetworkConfig = Annotated[
    Annotated[UNetConfig, Tag("unet")]
    | Annotated[DiTConfig, Tag("dit")]
    | Annotated[MLPConfig, Tag("mlp")]
    | Annotated[GeneratorConfig, Tag("generator")]
    | Annotated[AutoencoderConfig, Tag("autoencoder")]
    | Annotated[AutoencoderKLConfig, Tag("autoencoder-kl")]
    | Annotated[AffineConfig, Tag("affine")]
    | Annotated[DiffusersConfig, Tag("diffusers")],
    Discriminator(_name_of),
]
