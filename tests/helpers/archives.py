"""Tiny data sets in the real ones' file formats, with random images."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np


def write_idx(folder: Path) -> None:
    """Images and labels in the format of MNIST, 40 to train on and 40 to test with."""
    rng = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        images = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)
        labels = (np.arange(40) % 10).astype(np.uint8)
        head = bytes([0, 0, 8, 3]) + struct.pack(">3I", 40, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(head + images.tobytes())
        )
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 40) + labels.tobytes())
        )


def write_cifar(folder: Path, monkeypatch, images: int = 2) -> dict[str, dict]:
    """CIFAR-10's python version at `images` a file: rows of 3072 bytes, red first. Only the
    checksums differ, and are not looked at. Returns the content of each file."""
    base, rng = folder / "cifar-10-batches-py", np.random.default_rng(0)
    base.mkdir()
    files = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        entry = {
            "data": rng.integers(0, 256, (images, 3072), np.uint8),
            "labels": rng.integers(0, 10, images).tolist(),
        }
        (base / name).write_bytes(pickle.dumps({**entry, "batch_label": name}, protocol=2))
        files[name] = entry
    (base / "batches.meta").write_bytes(
        pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}, protocol=2)
    )
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda path, md5=None: (base / path).exists()
    )
    return files
