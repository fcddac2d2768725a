"""Random numbers addressed by (seed, stream, sample index), so that no result depends on batch size
or process count.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in plain tensor
arithmetic: the number at one address is the same on every device, in every batch, in every process,
and nothing has to be saved to resume.
"""

from __future__ import annotations

import math
import zlib
from functools import lru_cache

import torch
from torch import Tensor

from core.errors import UserError

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


@lru_cache(maxsize=256)
def _constants(key: tuple[int, int], device: torch.device) -> Tensor:
    """[11, 2]: the multipliers, then the keys of the ten rounds. They travel to a GPU once."""
    keys = [[(k + n * w) & MASK for k, w in zip(key, WEYL, strict=True)] for n in range(10)]
    return torch.tensor([MULTIPLIERS, *keys], device=device)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32. Counters are int64 tensors of values below 2**32; so are the four
    results."""
    # The two halves of a round are alike: they are one tensor each way, which takes half as many
    # operations, and that is what a GPU waits for.
    even, odd = torch.stack((counter[0], counter[2])), torch.stack((counter[1], counter[3]))
    constants = _constants(key, even.device).view(11, 2, *[1] * counter[0].ndim)
    multipliers, *keys = constants.unbind()
    for round_key in keys:
        # An int64 product wraps, but its bits are those of the unsigned product.
        product = (even * multipliers).flip(0)
        even, odd = ((product >> 32) & MASK) ^ odd ^ round_key, product & MASK
    return even[0], odd[0], even[1], odd[1]


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that somebody gave and that another one would be the same as."""
    if not 0 <= seed <= MASK:
        raise UserError(f"seed = {seed}: give 0 to {MASK}; no other seed has numbers of its own")


def rounded_rate(rate: float) -> float:
    """The probability that `Noise.kept` really has."""
    return round(rate * 2**16) / 2**16


class Noise:
    """The random numbers of a set of samples.

    Args:
        seed: any integer; its low 32 bits count.
        indices: [B] int64, the global index of each sample.

    Each draw names a `stream` (what it is for) and a `step` (how often it has been asked for), so
    two draws never share numbers unless they share all of (seed, stream, step, index). A `use`
    stands before the names of all streams.
    """

    def __init__(self, seed: int, indices: Tensor, use: str = ""):
        self.seed, self.indices, self.use = seed & MASK, indices.to(torch.int64), use

    def of(self, use: str) -> Noise:
        """Other numbers of the same samples, for a part of a computation whose streams have the
        names of another part's."""
        return Noise(self.seed, self.indices, f"{self.use}{use}: ")

    def __len__(self) -> int:
        return len(self.indices)

    def _bits(self, count: int, stream: str, step: int) -> Tensor:
        """[B, count] int64 in [0, 2**32)."""
        blocks = torch.arange(-(-count // 4), device=self.indices.device)[None]  # [1, blocks]
        index = self.indices[:, None]
        counter = (blocks, torch.full_like(blocks, step & MASK), index & MASK, (index >> 32) & MASK)
        name = zlib.crc32((self.use + stream).encode())
        words = philox(torch.broadcast_tensors(*counter), (self.seed, name))
        return torch.stack(words, dim=-1).flatten(1)[:, :count]

    def uniform(self, stream: str, step: int = 0, count: int | None = None) -> Tensor:
        """[B] (or [B, count]) float64 in the open interval (0, 1)."""
        u = (self._bits(count or 1, stream, step).double() + 0.5) / 2**32
        return u if count else u[:, 0]

    def kept(self, rate: float, count: int, stream: str, step: int = 0) -> Tensor:
        """[B, count] bool: False with the probability `rate`, rounded to multiples of 2**-16 as
        `rounded_rate` says."""
        words = self._bits(-(-count // 2), stream, step)
        halves = torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten(1)[:, :count]
        return halves >= rounded_rate(rate) * 2**16

    def integers(self, high: int, stream: str, step: int = 0) -> Tensor:
        """[B] int64, uniform on 0..high - 1 (bias below high / 2**32)."""
        return (self._bits(1, stream, step)[:, 0] * high) >> 32

    def normal(
        self, shape: tuple[int, ...], stream: str, step: int = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """[B, *shape] standard normal, by Box and Muller in float64."""
        count = math.prod(shape)
        half = -(-count // 2)
        u = self.uniform(stream, step, count=2 * half)
        radius, angle = (-2.0 * u[:, :half].log()).sqrt(), 2.0 * math.pi * u[:, half:]
        z = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
        return z.to(dtype).view(len(self), *shape)
