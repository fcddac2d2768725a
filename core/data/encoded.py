"""Images as a codec with weights has encoded them: once, before training, and kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from core.codec import Latents
from core.locks import waiting
from core.noise import Noise
from core.tensors import read_tensors, write_tensors


class Encoded(NamedTuple):
    """Mean and standard deviation of the latents of every image, float32 [N, C, h, w]; of data that
    are flipped [2N, ...], the mirrored images after the others."""

    mean: Tensor
    std: Tensor

    def to(self, device: torch.device) -> Encoded:
        return Encoded(*(part.to(device) for part in self))

    def draw(self, index: Tensor, mirrored: Tensor | None, rng: Noise) -> Tensor:
        """Latents [B, C, h, w] of the images `index` [B], of the mirrored ones where `mirrored`
        [B] says so, drawn from the posterior of each by addressed noise."""
        if mirrored is not None:
            index = index + len(self.mean) // 2 * mirrored.to(index)
        mean, std = self.mean[index], self.std[index]
        return mean + std * rng.normal(tuple(mean.shape[1:]), "posterior")


PART = 512  # images between two movements of the progress bar


def encoded(
    images: Tensor, flip: bool, codec: Latents, file: Path, device: torch.device
) -> Encoded:
    """All `images` (uint8 [N, C, S, S]), from `file` or, where that is not there, encoded and put
    there. Of several processes one encodes, and the others wait for it."""
    names = ("mean", "std")
    with waiting(file):
        found = read_tensors(file, "the images are encoded again", names)
        if found is not None:
            return Encoded(*(found[0][name] for name in names))
        parts = list(images.split(PART))
        parts += [part.flip(-1) for part in parts] if flip else []
        bar = tqdm(
            parts, "encoding images", unit_scale=PART, unit="img", dynamic_ncols=True, delay=1
        )
        moments = [codec.moments(part.to(device)) for part in bar]
        made = Encoded(*(torch.cat(some).cpu() for some in zip(*moments, strict=True)))
        write_tensors(file, made._asdict())
    return made
