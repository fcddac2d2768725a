"""Values of single images, kept beside the rows so that an interrupted measurement goes on, and a
histogram costs nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from core.counting import count_evals
from core.model import Model
from core.noise import Noise
from core.tensors import read_tensors, write_tensors
from eval.text import short_hash


@dataclass(frozen=True)
class Values:
    """Of the images of one set: named tensors [N, ...] and what they cost per image."""

    tensors: dict[str, Tensor]
    nfe: float
    evals: float
    seconds: float


Ask = Callable[[Tensor, Tensor, Noise], dict[str, Tensor]]


def kept_values(
    folder: Path,
    words: str,
    protocol: dict[str, Any],
    model: Model,
    images: Tensor,
    labels: Tensor,
    seed: int,
    batch_size: int,
    ask: Ask,
) -> Values:
    """What `ask` says of stored images [N, ...], their labels [N] and addresses, batch by batch.
    Read from `folder` where the same `protocol` has been asked for already.

    Args:
        words: what is measured on what, of the file and the progress bar.
    """
    about = json.dumps(protocol, sort_keys=True)
    file = folder / f"{words.replace(' ', '-')}-{short_hash(about)}.safetensors"
    if (known := read_tensors(file, "measured again")) and known[1].get("protocol") == about:
        price = known[0].pop("price").tolist()
        return Values(known[0], *price)
    parts: list[dict[str, Tensor]] = []
    begun = time.perf_counter()
    with (
        tqdm(total=len(images), desc=words, unit="img", dynamic_ncols=True, disable=None) as bar,
        count_evals(model.network) as counter,
    ):
        for indices in torch.arange(len(images)).split(batch_size):
            found = ask(images[indices], labels[indices], Noise(seed, indices.to(model.device)))
            parts.append({name: value.cpu() for name, value in found.items()})
            bar.update(len(indices))
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    N = len(images)
    price = (counter.forwards / N, counter.evals / N, (time.perf_counter() - begun) / N)
    kept = tensors | {"price": torch.tensor(price, dtype=torch.float64)}
    write_tensors(file, kept, {"protocol": about})
    return Values(tensors, *price)
