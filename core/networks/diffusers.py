"""Networks of the diffusers library: pixel-space U-Nets and DiTs of published checkpoints.

diffusers is optional and imported when such a network is built.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from core.errors import UserError
from core.networks.base import NetworkBase
from core.setting import MOST_STEPS

MISSING = "the package diffusers is not installed (pip install diffusers)"


def diffusers_library(wanted_by: str) -> Any:
    """The diffusers module; raises UserError, saying what to install, where it is missing."""
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"{wanted_by}: {MISSING}") from error
    return diffusers


class DiffusersConfig(NetworkBase):
    """A model of diffusers."""

    name: Literal["diffusers"] = "diffusers"
    """the network's kind"""
    class_name: Literal["UNet2DModel", "DiTTransformer2DModel"]
    """of the model in diffusers"""
    config: dict[str, Any]
    """its own config, as in its config.json"""
    steps: int = Field(default=1000, ge=1, le=MOST_STEPS)
    """T of the table it was trained on, whose entry k it is told where t = (k + 1) / T"""
    null_label: bool = False
    """whether the last class of a UNet2DModel is the null label (a DiT has one besides its
    classes)"""
    second_time: ClassVar[bool] = False

    @field_validator("config")
    @classmethod
    def _public(cls, config: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config.items() if not key.startswith("_")}

    def with_dropout(self, rate: float) -> DiffusersConfig:
        has_any = "dropout" in self.config
        changed = {"config": self.config | {"dropout": rate}}
        return self.model_copy(update=changed) if has_any else self

    @property
    def dropout(self) -> float:
        return float(self.config.get("dropout") or 0.0)

    @property
    def labels(self) -> int:
        """The number of classes, the null label not counted; 0 = none."""
        key = "num_class_embeds" if self.class_name == "UNet2DModel" else "num_embeds_ada_norm"
        rows = int(self.config.get(key) or 0)
        return rows - 1 if rows and self.null_label and self.class_name == "UNet2DModel" else rows

    @property
    def conditional(self) -> bool:
        return self.labels > 0

    def build(self, channels: int, side: int, num_classes: int) -> DiffusersNetwork:
        """A freshly initialised network.

        Raises:
            UserError: diffusers is not installed, a config it refuses, or images or classes that do
                not fit.
        """
        fitting = {"in_channels": channels, "sample_size": side}
        for key, value in fitting.items():
            if (given := self.config.get(key)) not in (value, [value, value], (value, value)):
                raise UserError(
                    f"network.config.{key} = {given} of {self.class_name}, but the images have {value}: change one"
                )
        if self.labels and self.labels != num_classes:
            raise UserError(
                f"{self.class_name} embeds {self.labels} classes, but the data has {num_classes}"
            )
        cls = getattr(diffusers_library(f"network {self.class_name}"), self.class_name)
        try:
            inner = cls(**self.config)
        except (TypeError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"network.config is not one of {self.class_name}: {reason}") from error
        return DiffusersNetwork(
            inner,
            self.steps,
            self.labels,
            self.null_label or self.class_name == "DiTTransformer2DModel",
        )


class DiffusersNetwork(nn.Module):
    """`net(x, t, r, label) -> F` around a model of diffusers.

    The network's integer timestep is k = T t - 1, the inverse of t = (k + 1) / T, continued to real
    numbers (-1 at t = 0) for students that are asked at any t. Within 1e-3 of an integer k is that
    integer, since t arrives in the network's precision.

    Args:
        inner: the model; its positional time embedding takes real numbers.
        steps: T.
        num_classes: labels are 0..num_classes - 1, and num_classes is the null label where the
            model has one (`null_label`).
    """

    def __init__(self, inner: nn.Module, steps: int, num_classes: int, null_label: bool):
        super().__init__()
        self.adopt(inner)
        self.steps, self.num_classes, self.null_label = steps, num_classes, null_label

    def adopt(self, inner: nn.Module) -> None:
        """Makes `inner` the model. A DiT in training drops labels by itself; here that is the
        method's to do, or not."""
        self.inner = inner
        for module in inner.modules():
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0

    def timestep(self, t: Tensor) -> Tensor:
        """k [B] in float32 for t [B]."""
        k = t.double() * self.steps - 1
        whole = k.detach().round()
        near = (k.detach() - whole).abs() < 1e-3
        return torch.where(near, k + (whole - k.detach()), k).float()

    def forward(
        self, x: Tensor, t: Tensor, r: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        """x [B, C, H, W], t [B] in [0, 1], r None, label [B] (int64) or None for the null label ->
        [B, C, H, W].

        Raises:
            UserError: the null label is asked for and the model has none.
            ValueError: a second time, or a label for an unconditional model.
        """
        if r is not None:
            raise ValueError("networks of diffusers take no second time r")
        if not self.num_classes:
            if label is not None:
                raise ValueError("this network is unconditional: label must be None")
            return self.inner(x, self.timestep(t), return_dict=False)[0]
        if label is None:
            label = torch.full((len(x),), self.num_classes, device=x.device)
        if not self.null_label and bool((label == self.num_classes).any()):
            raise UserError(
                f"this {type(self.inner).__name__} embeds {self.num_classes} classes and no null label: give labels, and "
                "leave guidance off (guidance_scale=1.0)"
            )
        return self.inner(x, self.timestep(t), class_labels=label, return_dict=False)[0]
