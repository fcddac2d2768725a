"""The Python files that an export carries: our U-Net for diffusers, and a pipeline. Nothing in them
needs this repository."""

from __future__ import annotations

import inspect

from core.networks import attention, embeddings
from core.networks import unet as ours

MODULE, PIPELINE = "modeling_fast_sampling", "pipeline"


def _sources(*things) -> str:
    return "\n\n".join(inspect.getsource(thing) for thing in things)


def module_source() -> str:
    """unet/modeling_fast_sampling.py: our U-Net's own source, and the class that diffusers
    calls."""
    from teachers.diffusers_format import module

    parts = (
        embeddings.sinusoidal_embedding,
        embeddings.zeroed,
        embeddings.embedder,
        embeddings.embedded_label,
        embeddings.Embedded,
        attention.attend,
        ours.group_norm,
        ours.ResidualBlock,
        ours.SelfAttention,
        ours.Stage,
        ours.Encoded,
        ours.UNet,
    )
    return "\n".join(
        [
            '"""The U-Net of the fast-sampling lab (MIT licence) for diffusers. Written by scripts.teacher export."""\n',
            "from __future__ import annotations\n",
            "import math",
            "from typing import NamedTuple\n",
            "import torch",
            "from diffusers import ConfigMixin, ModelMixin",
            "from diffusers.configuration_utils import register_to_config",
            "from diffusers.models.unets.unet_2d import UNet2DOutput",
            "from torch import Tensor, nn",
            "from torch.nn import functional as F\n\n",
            "UserError = ValueError\n\n",
            _sources(*parts, module.FastSamplingUNet),
        ]
    )


def pipeline_source() -> str:
    """pipeline.py: noise to images, for networks or labels that diffusers has no pipeline for."""
    from teachers.diffusers_format import module

    return "\n".join(
        [
            '"""Sampling for models of the fast-sampling lab (MIT licence). Written by scripts.teacher export."""\n',
            "from __future__ import annotations\n",
            "import inspect\n",
            "import torch",
            "from diffusers import DiffusionPipeline",
            "from diffusers.pipelines.pipeline_utils import ImagePipelineOutput",
            "from diffusers.utils.torch_utils import randn_tensor",
            "from torch import Tensor\n\n",
            _sources(module.FastSamplingPipeline),
        ]
    )
