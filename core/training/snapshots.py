"""Averages after training (Karras et al. 2024, arXiv 2312.02696, section 3.2 and appendix C): two
averages of another profile than is wanted are kept as snapshots, and any average between is put
together from them."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from ema_pytorch.post_hoc_ema import KarrasEMA, p_dot_p, sigma_rel_to_gamma
from pydantic import Field
from torch import Tensor, nn

from core.config import Strict
from core.errors import UserError
from core.tensors import read_tensors, write_tensors

NAME = re.compile(r"(\d{12,})-(\d{2,})\.safetensors")  # IMAGES-STAGE
MOST_OFF = 0.1  # of the wanted profile, by which the nearest may differ
Width = Annotated[float, Field(ge=0.005, le=0.28)]


class SnapshotConfig(Strict):
    """Snapshots of two moving averages of the student, which averages of other half-lives are put
    together from after training (scripts.ema)."""

    every: int = Field(ge=1, lt=2**53)
    """images between snapshots, each of which takes twice the weights on disk"""
    widths: tuple[Width, Width] = (0.05, 0.1)
    """of the averages: standard deviation of the times that they see over the length of training"""


def exponent(width: float) -> float:
    """gamma of the average with this relative width (eq. 123)."""
    return sigma_rel_to_gamma(width)


def power_averages(network: nn.Module, config: SnapshotConfig | None) -> dict[str, KarrasEMA]:
    """The averages that snapshots are taken of, by the name of their files."""
    return {
        f"power-{width:g}": _average(network, exponent(width))
        for width in (config.widths if config else ())
    }


def _average(network: nn.Module, gamma: float) -> KarrasEMA:
    # left to itself, ema-pytorch ends the process where a network cannot be copied
    return KarrasEMA(network, gamma=gamma, ema_model=copy.deepcopy(network), update_every=1)


def seen(average: KarrasEMA) -> int:
    """t of the profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1): the steps of the average,
    and one, since ema-pytorch's first step has the decay of the second. Step tau then has the
    weight of (tau, tau + 1] exactly, and the first that of [0, 2]."""
    return int(average.step) + 1


def _folder(run: Path) -> Path:
    return run / "snapshots"


def keep_snapshot(
    run: Path, averages: dict[str, KarrasEMA], images: int, stage: int, batch_size: int
) -> None:
    """Writes snapshots/IMAGES-STAGE.safetensors; a run that was killed and comes by here again
    writes the same."""
    tensors, about = {}, {"batch_size": str(batch_size)}
    for name, average in averages.items():
        about[name] = json.dumps({"t": seen(average), "gamma": average.gamma})
        for key, tensor in average.ema_model.state_dict().items():
            tensors[f"{name}/{key}"] = tensor.detach().cpu()
    write_tensors(_folder(run) / f"{images:012d}-{stage:02d}.safetensors", tensors, about)


def drop_snapshots(run: Path) -> None:
    """Removes those of the stages before: averages begin anew with each."""
    for file in _files(run):
        file.unlink()


def _files(run: Path) -> list[Path]:
    return sorted(file for file in _folder(run).glob("*") if NAME.fullmatch(file.name))


@dataclass(frozen=True)
class Snapshots:
    """All snapshots of a run's last stage.

    files: by rising images. names: of the averages in each. t, gamma: [files, 2], of theirs.
    batch_size: images per step.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]
    t: np.ndarray
    gamma: np.ndarray
    batch_size: int

    @property
    def end(self) -> int:
        """t at the last of them."""
        return int(self.t.max())


def read_snapshots(run: Path, images: int) -> Snapshots:
    """Those of a run whose newest checkpoint has seen so many images.

    Raises:
        UserError: it has none, they do not reach to there, or a file is damaged.
    """
    files = _files(run)
    last = int(NAME.fullmatch(files[-1].name)[2]) if files else 0
    found = {int(m[1]): file for file in files if (m := NAME.fullmatch(file.name))}
    files = [
        file for at, file in found.items() if at <= images and file.stem.endswith(f"-{last:02d}")
    ]
    if not files:
        raise UserError(
            f"{run} has no snapshots: train it with snapshots.every=IMAGES, in another folder"
        )
    if images not in found:
        raise UserError(
            f"{run} has no snapshot of its last checkpoint, at {images:,} images: let its training "
            "come to its end"
        )
    abouts = [_read(file)[1] for file in files]
    names = tuple(sorted(name for name in abouts[0] if name.startswith("power-")))
    values = [[json.loads(about[name]) for name in names] for about in abouts]
    t, gamma = (
        np.array([[v[key] for v in row] for row in values], float) for key in ("t", "gamma")
    )
    return Snapshots(tuple(files), names, t, gamma, int(abouts[0]["batch_size"]))


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    found = read_tensors(file, "no average can be put together with it")
    if found is None:
        raise UserError(f"{file} is damaged: copy it again from where it is whole, or train again")
    return found


def solve(t: np.ndarray, gamma: np.ndarray, end: float, wanted: float) -> tuple[np.ndarray, float]:
    """The share of each snapshot [K] in the average that is nearest to the power function with
    exponent `wanted` at `end`, by least squares (algorithm 3), and how far it is off, over the norm
    of what is wanted.

    Deviation: the shares add up to 1, as those of an average do; the paper leaves that to the fit.
    """
    columns = torch.tensor(t)[:, None], torch.tensor(gamma)[:, None]
    aim = (
        torch.tensor([[float(end)]], dtype=torch.float64),
        torch.tensor([[float(wanted)]]).double(),
    )
    gram = p_dot_p(*columns, columns[0].T, columns[1].T).numpy()
    with_aim = p_dot_p(*columns, *aim).numpy()[:, 0]
    own = float(p_dot_p(*aim, *aim))
    one = np.ones(len(t))
    system = np.block([[gram, one[:, None]], [one[None], np.zeros((1, 1))]])
    shares = np.linalg.lstsq(system, np.append(with_aim, 1.0), rcond=1e-13)[0][:-1]
    off = own - 2 * shares @ with_aim + shares @ gram @ shares
    return shares, math.sqrt(max(0.0, off) / own)


def exponent_of(half_life: float) -> float:
    """gamma of the power function of which the last `half_life` of its length make up half."""
    return -math.log(2) / math.log1p(-half_life) - 1


def half_life_of(shares: np.ndarray, t: np.ndarray, gamma: np.ndarray) -> float:
    """Steps whose weights, the last ones, make up half of what the snapshots add up to: exact, since
    up to step tau an average at t has (tau / t)^(gamma + 1)."""
    end = float(t.max())

    def up_to(tau: float) -> float:
        return float(shares @ np.minimum(1.0, tau / t) ** (gamma + 1))

    low, high = 0.0, end  # up_to(low) = 0 and up_to(high) = 1
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if up_to(middle) < 0.5 else (low, middle)
    return end - high


@dataclass(frozen=True)
class Synthesis:
    """An average that was put together. half_life: images, the true one; off: how far its profile
    is from the wanted one, over the norm of that; source: the newest snapshot in it."""

    state: dict[str, Tensor]
    half_life: float
    off: float
    source: Path


def synthesise(run: Path, images: int, half_life: float) -> Synthesis:
    """The average of a run with the profile of a power function and this half-life.

    Args:
        images: that its newest checkpoint has seen. half_life: in images.

    Raises:
        UserError: see `read_snapshots`; or the half-life is beyond what snapshots can tell.
    """
    found = read_snapshots(run, images)
    length = half_life / found.batch_size / found.end
    if not 0 < length <= 0.5:
        raise UserError(
            f"half-life {half_life:g}: between 0 and {found.end * found.batch_size / 2:.0f} images, half of "
            f"what {run} has averaged"
        )
    t, gamma = found.t.ravel(), found.gamma.ravel()
    shares, off = solve(t, gamma, found.end, exponent_of(length))
    if off > MOST_OFF:
        raise UserError(
            f"half-life {half_life:g}: the snapshots of {run} come no nearer than {off:.0%} to such an "
            "average: give a longer one, or train with more snapshots"
        )
    state: dict[str, Tensor] = {}
    for file, row in zip(found.files, shares.reshape(found.t.shape), strict=True):
        tensors, _ = _read(file)
        for name, share in zip(found.names, row, strict=True):
            for key, tensor in tensors.items():
                if key.startswith(f"{name}/"):
                    _add(state, key.removeprefix(f"{name}/"), tensor, float(share))
    state = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    }
    true = half_life_of(shares, t, gamma) * found.batch_size
    return Synthesis(state, true, off, found.files[-1])


def _add(state: dict[str, Tensor], key: str, tensor: Tensor, share: float) -> None:
    if not tensor.is_floating_point():
        state[key] = tensor  # the last one's
    elif key in state:
        state[key] += share * tensor.double()
    else:
        state[key] = share * tensor.double()
