"""A data set in memory, and batches drawn by index from (seed, images seen)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from core.codec import CODECS, Codec
from core.condition import Condition
from core.data.densities import Density
from core.data.encoded import Encoded
from core.errors import UserError
from core.networks.text import TextConfig
from core.noise import Noise


class Attribute(NamedTuple):
    """Something that captions say: labels int64 [N], and what they mean by number."""

    labels: Tensor
    values: tuple[str, ...]


@dataclass(frozen=True)
class ImageData:
    """One split of a data set.

    images: as they are stored, uint8 [N, C, H, W], or points in float32 [N, D, 1, 1]; labels: int64
    [N], all 0 where there are no classes; num_classes: 0 = none; flip: whether a mirrored image is
    as good an image; class_names: by label, () where they are not known; codec: what turns them
    into what a network sees; encoded: the images as a codec with weights has encoded them; density:
    of points, the exact distribution that they were drawn from; captions: a text per image, ()
    where there are none; text: their tokens as a network reads them, int64 [N, L], None where none
    does; attributes: what captions say, by name."""

    name: str
    split: str
    images: Tensor
    labels: Tensor
    num_classes: int
    flip: bool = False
    class_names: tuple[str, ...] = ()
    codec: Codec = CODECS["pixels"]
    encoded: Encoded | None = None
    density: Density | None = None
    captions: tuple[str, ...] = ()
    text: Tensor | None = None
    attributes: dict[str, Attribute] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def side(self) -> int:
        return self.images.shape[2]

    def seen_by(self, num_classes: int, text: TextConfig | None = None) -> ImageData:
        """The data as a network of that many classes, and of that text encoder, sees it: without
        labels where it takes none, and with the tokens of its captions where it reads them.

        Raises:
            UserError: it reads captions and there are none, or one does not fit it.
        """
        seen = self if num_classes else replace(self, num_classes=0, class_names=())
        if text is None:
            return seen
        if not self.captions:
            raise UserError(
                f"data '{self.name}' has no captions, which model.network.text reads: remove text, "
                "or take data that has some, such as emoji"
            )
        return replace(seen, text=text.tokens(self.captions))

    @cached_property
    def sha256(self) -> str:
        """Of the pixels, the labels, and the captions if there are any."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.contiguous().numpy().tobytes())
        digest.update("\n".join(self.captions).encode())
        return digest.hexdigest()


class Batch(NamedTuple):
    """Training samples: x0 [B, ...] as the network sees them, their condition, and rng with the
    index of each sample.

    eps: stored noise that belongs to x0 (a coupling made beforehand), or None where noise is
    independent of the data.
    """

    x0: Tensor
    condition: Condition
    rng: Noise
    eps: Tensor | None = None


class EpochOrder:
    """Position in the stream of samples -> index in the data: a fresh permutation every epoch, from
    (seed, epoch)."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self._cached: tuple[int, Tensor] = (-1, torch.empty(0))

    def _permutation(self, epoch: int) -> Tensor:
        if self._cached[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed << 20) ^ epoch)
            self._cached = (epoch, torch.randperm(self.size, generator=generator))
        return self._cached[1]

    def __call__(self, positions: Tensor) -> Tensor:
        """positions int64 [B], increasing -> data indices [B]."""
        epochs = positions // self.size
        return torch.cat(
            [self._permutation(int(e))[positions[epochs == e] % self.size] for e in epochs.unique()]
        )


class ImageSource:
    """Training samples straight from a data set."""

    def __init__(self, data: ImageData, seed: int):
        self.data, self.order = data, EpochOrder(len(data), seed)
        self._moved: tuple | None = None  # to a device: see _on

    @property
    def sha256(self) -> str:
        return self.data.sha256

    def _on(self, device: torch.device) -> tuple[Tensor | Encoded, Tensor, Tensor | None]:
        """Images, as they are stored or encoded, labels and tokens, moved to a device once: batches
        are but indices."""
        if self._moved is None or self._moved[0] != device:
            data = self.data
            parts = data.images if data.encoded is None else data.encoded, data.labels, data.text
            self._moved = device, *(None if part is None else part.to(device) for part in parts)
        return self._moved[1:]

    def draw(self, positions: Tensor, device: torch.device) -> Batch:
        """The samples at these positions of the training stream (int64 [B], counted in images
        seen)."""
        index = self.order(positions).to(device)
        rng = Noise(self.order.seed, positions.to(device))
        stored, labels, texts = self._on(device)
        mirrored = rng.uniform("flip") < 0.5 if self.data.flip else None
        if isinstance(stored, Encoded):
            x0 = stored.draw(index, mirrored, rng)
        else:
            images = stored[index]
            if mirrored is not None:
                images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
            x0 = self.data.codec.encode(images)
        label = labels[index] if self.data.num_classes else None
        text = None if texts is None else texts[index]
        return Batch(x0, Condition(label=label, text=text), rng)
