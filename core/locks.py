"""Locks: of two processes that would write the same place, the second one is told, or waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout  # PyTorch depends on it

from core.errors import UserError


@contextmanager
def only_one(path: Path, busy: str) -> Iterator[None]:
    """While the block runs, no other process may enter it for the same path.

    Raises:
        UserError: another one is in it, with the words `busy`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(busy) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """While the block runs, no other process is in it for the same path: it waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=-1):
        yield
