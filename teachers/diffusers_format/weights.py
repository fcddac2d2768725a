"""The weights files of a diffusers network: whole or in shards, plain or a variant such as fp16,
safetensors or pickled. Read as tensors alone: nothing in them is run."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from core.errors import UserError
from core.files import read_text, sha256_of
from core.tensors import load_tensors

STEM = "diffusion_pytorch_model"
_WHOLE = re.compile(rf"{STEM}(?:\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)")
_INDEX = re.compile(rf"{STEM}\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json")
HALVES = ("fp16", "bf16")
AGAIN = "fetch the checkpoint again"


@dataclass(frozen=True)
class Weights:
    """One of the sets of weights in a folder. file: the whole of it, or the index of its shards."""

    file: Path
    kind: str
    variant: str | None

    @property
    def sharded(self) -> bool:
        return self.file.suffix == ".json"

    def rank(self) -> tuple:
        """What is taken sorts first: plain, in full precision, safetensors, whole."""
        half = self.variant in HALVES
        return self.variant is not None, half, self.kind == "bin", self.sharded, self.variant or ""

    def _map(self) -> dict[str, str]:
        """Tensor -> the name of its shard."""
        try:
            names = json.loads(read_text(self.file))["weight_map"]
            assert names and all(isinstance(name, str) for name in names.values())
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise UserError(f"{self.file} is no index of shards: {AGAIN}") from error
        for name in names.values():
            if Path(name).name != name or not name.endswith(f".{self.kind}"):
                raise UserError(f"{self.file} names the shard {name!r}: {AGAIN}")
        return names

    def files(self) -> tuple[Path, ...]:
        """The file, or its shards, whether they are there or not."""
        if not self.sharded:
            return (self.file,)
        return tuple(self.file.with_name(name) for name in sorted(set(self._map().values())))

    def sha256(self) -> str:
        """The hash of the file, or one of the hashes of its shards."""
        hashes = [sha256_of(file) for file in self.files()]
        joined = "".join(hashes).encode()
        return hashlib.sha256(joined).hexdigest() if self.sharded else hashes[0]

    def tensors(self) -> dict[str, Tensor]:
        """All of them on the CPU.

        Raises:
            UserError: a file that is missing, damaged or holds anything else, or shards that are
                not those of the index.
        """
        shards = {file.name: _read(file) for file in self.files()}
        state = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
        for name, shard in self._map().items() if self.sharded else ():
            if name not in shards[shard]:
                raise UserError(f"{self.file}: {shard} has no tensor '{name}': {AGAIN}")
        return state

    def write(self, file: Path) -> None:
        """All tensors as one plain safetensors file."""
        state = {name: tensor.clone().contiguous() for name, tensor in self.tensors().items()}
        save_file(state, file, metadata={"format": "pt"})


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"{file} is missing: {AGAIN}")
    return load_tensors(file, f"is damaged, or no weights ({AGAIN})")


def find_weights(folder: Path) -> list[Weights]:
    """All sets of weights in a network's folder, what is taken first; [] where there are none."""
    found = []
    for file in sorted(folder.glob(f"{STEM}*")):
        if (match := _WHOLE.fullmatch(file.name) or _INDEX.fullmatch(file.name)) and file.is_file():
            found.append(Weights(file, match["kind"], match["variant"]))
    return sorted(found, key=Weights.rank)
