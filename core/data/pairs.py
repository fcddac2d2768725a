"""Stored pairs of noise and data, in shards on disk that are checked when they are read."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from core.condition import Condition
from core.config import Strict, parse
from core.data.dataset import Batch, EpochOrder
from core.errors import UserError
from core.files import read_json, sha256_of, write_text
from core.model import ModelSpec
from core.noise import Noise
from core.tensors import load_tensors


class PairRecipe(Strict):
    """What the pairs are: everything that decides their content. channels and side: of what the
    network sees. codec: the hash of the autoencoder in whose latents they are, None on pixels."""

    LATER = ("codec",)

    run: str
    run_name: str
    weights_sha256: str
    sampler: str
    steps: int
    count: int
    seed: int
    guidance_scale: float
    shard: int
    channels: int
    side: int
    num_classes: int
    text_length: int = 0
    codec: str | None = None


class Manifest(PairRecipe):
    """A recipe with the shards done so far: file name -> sha256, and what they cost."""

    shards: dict[str, str] = {}
    evals: float = Field(default=0.0, ge=0)
    seconds: float = Field(default=0.0, ge=0)


def read_manifest(folder: Path) -> Manifest | None:
    file = folder / "pairs.json"
    if not file.is_file():
        return None
    mend = f"delete {folder} and generate the pairs again"
    return parse(Manifest, read_json(file, mend), str(file))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_text(folder / "pairs.json", manifest.model_dump_json(indent=1))


SHARD = re.compile(r"[0-9]{6,}\.safetensors")


def shard_name(k: int) -> str:
    return f"{k:06d}.safetensors"


class PairSource:
    """Stored pairs as training batches: x0, label and caption, and the noise that x0 came from.

    Raises:
        UserError: no pairs there, generation not finished, or a shard that is missing, truncated or
            changed.
    """

    def __init__(self, folder: str | Path, seed: int):
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise UserError(
                f"{folder} holds no pairs (pairs.json): generate them with python -m scripts.pairs --help"
            )
        self.manifest = manifest
        if manifest.count < 1 or manifest.shard < 1:
            raise UserError(f"{folder}/pairs.json: count and shard must be at least 1")
        expected = -(-manifest.count // manifest.shard)
        if len(manifest.shards) < expected:
            raise UserError(
                f"{folder}: {len(manifest.shards)} of {expected} shards are there; run scripts.pairs again to finish"
            )
        if other := manifest.shards.keys() - {shard_name(k) for k in range(expected)}:
            raise UserError(f"{folder}/pairs.json names the shard {min(other)!r}, which is none")
        parts = [self._read(name) for name in sorted(manifest.shards)]
        self.x0 = torch.cat([p["x0"] for p in parts])
        self.label = torch.cat([p["label"] for p in parts])
        self.index = torch.cat([p["index"] for p in parts])
        self.text = torch.cat([p["text"] for p in parts]) if manifest.text_length else None
        self.order = EpochOrder(len(self.x0), seed)

    def _read(self, name: str) -> dict[str, Tensor]:
        file = self.folder / name
        mend = "run scripts.pairs again, which makes it again"
        if not file.is_file():
            raise UserError(f"pair shard {file} is missing: {mend}")
        if sha256_of(file) != self.manifest.shards[name]:
            raise UserError(
                f"pair shard {file} is truncated or was changed (its sha256 is not the recorded one): {mend}"
            )
        tensors = load_tensors(file, f"is a damaged pair shard ({mend})")
        m, n = self.manifest, len(tensors.get("index", ()))
        wanted = {
            "x0": (torch.float16, (n, m.channels, m.side, m.side)),
            "label": (torch.int64, (n,)),
            "index": (torch.int64, (n,)),
        }
        if m.text_length:
            wanted["text"] = (torch.int64, (n, m.text_length))
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        if not n or found != wanted:
            raise UserError(f"pair shard {file} does not hold what pairs.json says: {mend}")
        return tensors

    @property
    def sha256(self) -> str:
        """Of the shards, from their recorded hashes."""
        joined = "".join(self.manifest.shards[name] for name in sorted(self.manifest.shards))
        return hashlib.sha256(joined.encode()).hexdigest()

    def check_fits(self, spec: ModelSpec) -> None:
        m, reads = self.manifest, 0 if spec.text is None else spec.text.length
        if m.text_length != reads:
            raise UserError(
                f"{self.folder}: pairs with captions of {m.text_length} tokens do not fit a model "
                f"that reads {reads}: make the pairs with a model that reads captions alike"
            )
        channels, side = spec.shape[:2]
        if (m.channels, m.side, m.num_classes) != (channels, side, spec.num_classes):
            raise UserError(
                f"{self.folder}: pairs of {m.channels}x{m.side}x{m.side}, {m.num_classes} classes, do not fit a model of "
                f"{channels}x{side}x{side}, {spec.num_classes} classes"
            )
        if m.codec != spec.codec_sha256:
            raise UserError(
                f"{self.folder}: pairs in the latents of another autoencoder than the model's: make "
                "them again from a run in these latents"
            )

    def draw(self, positions: Tensor, device: torch.device) -> Batch:
        """The pairs at these positions of the training stream (int64 [B])."""
        rows = self.order(positions)
        x0 = self.x0[rows].float().to(device)
        eps = Noise(self.manifest.seed, self.index[rows].to(device)).normal(
            tuple(x0.shape[1:]), "prior"
        )
        label = self.label[rows].to(device) if self.manifest.num_classes else None
        text = None if self.text is None else self.text[rows].to(device)
        rng = Noise(self.order.seed, positions.to(device))
        return Batch(x0, Condition(label=label, text=text), rng, eps)
