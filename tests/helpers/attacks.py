"""Files that run code when something unpickles them, and what shows that it did not happen."""

from __future__ import annotations

import io
import pickle
import tarfile
import warnings
from pathlib import Path

import torch


class Attack:
    """Writes the file `marker` when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "code was run"))


class _Script(torch.nn.Module):
    def forward(self, x):
        return x + 1


def hostile(kind: str, marker: Path) -> bytes:
    """The content of a weights file of that kind: pickle, torch's old and new formats, with tensors
    around the attack, TorchScript (which is a program), and a tar (PyTorch's first format)."""
    attack, file = Attack(marker), io.BytesIO()
    if kind == "pickle":
        return pickle.dumps(attack)
    if kind == "zip":
        torch.save(attack, file)
    elif kind == "legacy":
        torch.save({"a": torch.ones(2), "b": attack}, file, _use_new_zipfile_serialization=False)
    elif kind == "among tensors":
        torch.save({"fc.weight": torch.ones(2, 2), "fc.bias": attack}, file)
    elif kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            torch.jit.save(torch.jit.script(_Script()), file)
    else:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                content = pickle.dumps(attack)
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


KINDS = ("pickle", "zip", "legacy", "among tensors", "script", "tar")
