"""How a GPU multiplies float32: exactly, or in TensorFloat-32, which keeps 10 bits of each factor
and is PyTorch's default in convolutions. bfloat16 is `model.autocast`, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def allow_tf32(yes: bool) -> None:
    """For all that follows in this process: matrix products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = yes
    torch.backends.cudnn.allow_tf32 = yes


def tf32_allowed() -> bool:
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within the block float32 is multiplied exactly, whatever is allowed outside."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(False)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
