"""The registries: a method's name in a config -> the class that trains it, imported when asked for; and what load_run reads
besides runs, which is registered by importing this."""

from __future__ import annotations

from importlib import import_module

from core.errors import UserError, nearest
from core.method import Method
from core.runs import LOADERS
from teachers.pretrained import PRETRAINED

LOADERS.append(PRETRAINED)

METHODS: dict[str, str] = {
    "ddpm": "teachers.ddpm:DDPM",
    "progressive": "students.progressive:Progressive",
    "consistency": "students.consistency:Consistency",
    "rectified-flow": "flows.rectified:RectifiedFlow",
    "ppca": "baselines.ppca:PPCA",
    "vae": "baselines.vae:VAE",
    "gan": "baselines.gan:GAN",
    "flow-distillation": "flows.distill:FlowDistillation",
}


def method_class(name: str) -> type[Method]:
    """The class of that name; raises UserError naming the nearest known one."""
    if name not in METHODS:
        raise UserError(f"unknown method '{name}'{nearest(name, METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)
