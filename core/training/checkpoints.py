"""Atomic checkpoints: a folder written beside its final name and renamed when complete, the newest
kept."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from core.errors import UserError, reason
from core.files import read_json, sha256_of, whole_folder, write_text
from core.training.roles import Role
from core.weights import load_weights, save_weights

T = TypeVar("T")
CHECKSUMS = "checksums.json"
NAME = re.compile(r"[0-9]{12,}-[0-9]{2,}")  # IMAGES-STAGE; other folders are somebody's own


def _checkpoints(folder: Path) -> list[Path]:
    """All in `folder`, oldest first."""
    found = [p for p in folder.glob("*") if NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: tuple(map(int, p.name.split("-"))))


def latest_checkpoint(run: Path, steps: int | None = None) -> Path | None:
    """The run's newest complete checkpoint; folders are named IMAGES-STAGE.

    With `steps`, the weights that were kept for sampling in that many steps, if the run kept any.
    """
    if steps is not None and (kept := run / "for-steps" / f"{steps:04d}").is_dir():
        return kept
    return next(reversed(_checkpoints(run / "checkpoints")), None)


def read_newest(run: Path, read: Callable[[Path], T], steps: int | None = None) -> T | None:
    """What `read` makes of the checkpoint that `latest_checkpoint` finds; None where there is none.

    A run that trains may be read: where its training has replaced the checkpoint in the meantime,
    `read` begins again with the new one.

    Raises:
        OSError, UserError: of `read`, for a checkpoint that is still the newest.
    """
    checkpoint, again = latest_checkpoint(run, steps), False
    while checkpoint is not None:
        try:
            return read(checkpoint)
        except (OSError, UserError):
            newer = latest_checkpoint(run, steps)
            if newer == checkpoint and again:
                raise
            again = newer == checkpoint  # it may have been replaced by another of its name
            checkpoint = newer
    return None


def _files(roles: dict[str, Role], helpers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Every network that a checkpoint holds, by its file's name. The student's own files have no
    prefix: they are what others load."""
    networks = {}
    for name, role in roles.items():
        prefix = "" if name == "student" else f"{name}-"
        networks[f"{prefix}raw"] = role.network
        networks |= {f"{prefix}{which}": role.average(which) for which in role.averages}
    return networks | {f"helper-{name}": network for name, network in helpers.items()}


def save_checkpoint(
    run: Path,
    roles: dict[str, Role],
    helpers: dict[str, nn.Module],
    state: dict,
    price: dict,
) -> Path:
    """Writes checkpoints/IMAGES-STAGE and drops older ones: weights and averages of every role and
    the weights of `helpers` (safetensors), the trainer's state, and what training has cost so far
    (price.json)."""
    final = run / "checkpoints" / f"{state['images']:012d}-{state['stage']:02d}"
    if final.is_dir():
        return final  # a resumed run came by here again, with the same bits
    spec = roles["student"].model.spec
    with whole_folder(final) as partial:
        for name, network in _files(roles, helpers).items():
            save_weights(partial / f"{name}.safetensors", network.state_dict(), spec)
        torch.save(state, partial / "state.pt")
        write_text(partial / "price.json", json.dumps(price, indent=1))
        write_checksums(partial)
    drop_others(final)
    return final


def drop_others(checkpoint: Path) -> None:
    """Removes all checkpoints but this one. What cannot be removed, such as a file that is being
    read on a network's disk, goes with the next one: training does not end for it."""
    for old in _checkpoints(checkpoint.parent):
        if old != checkpoint:
            try:
                shutil.rmtree(old)
            except OSError as error:
                print(f"warning: {old} stays for now: {reason(error)}", file=sys.stderr, flush=True)


def keep_for_steps(run: Path, checkpoint: Path, steps: int) -> None:
    """Copies a checkpoint's weights and price (not its training state) to where
    `latest_checkpoint(run, steps)` finds them."""
    final = run / "for-steps" / f"{steps:04d}"
    with whole_folder(final) as partial:
        for name in ("raw.safetensors", "ema.safetensors", "price.json"):
            shutil.copy2(checkpoint / name, partial / name)
        write_checksums(partial)


def write_checksums(folder: Path) -> None:
    """Notes the hash of every file of a checkpoint, which `check_file` holds it against."""
    sums = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    write_text(folder / CHECKSUMS, json.dumps(sums, indent=1))


def check_file(file: Path) -> str:
    """The sha256 of a checkpoint's file; raises UserError if it is not what was written. Shipped
    models and those of earlier versions have no checksums."""
    digest, sums = sha256_of(file), file.parent / CHECKSUMS
    if not sums.is_file():
        return digest
    written = read_json(sums, f"delete {file.parent} and train again")
    if not isinstance(written, dict):
        raise UserError(f"{sums} holds no checksums: delete {file.parent} and train again")
    if written.get(file.name) != digest:
        raise UserError(
            f"{file} was changed since it was written (its sha256 is not the one in {sums.name}): "
            f"copy it again from where it is whole, or delete {file.parent} and train again"
        )
    return digest


def read_state(folder: Path) -> dict:
    """The trainer's state in a checkpoint; raises UserError if the file is damaged, or if there are
    but weights to use."""
    if not (folder / "state.pt").exists() and not (folder / "raw.safetensors").exists():
        raise UserError(
            f"{folder.parents[1]} is a shipped model, weights without the state of their training: use it as it is, or give "
            "run=ANOTHER_FOLDER to train one"
        )
    file, mend = folder / "state.pt", f"delete {folder} to begin again"
    if not file.is_file():
        raise UserError(f"{file} is missing: copy it again from where it is whole, or {mend}")
    check_file(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a file that is no archive leads it to
        raise UserError(f"{file} is damaged or incomplete ({reason(error)}): {mend}") from error
    if not isinstance(state, dict):
        raise UserError(f"{file} is no state of a training: {mend}")
    return state


@contextmanager
def named_state(folder: Path) -> Iterator[None]:
    """What the block finds wrong with a checkpoint's state becomes a UserError that names it."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'state.pt'} is no state of this run ({reason(error)}): delete {folder} to "
            "begin again"
        ) from error


def load_checkpoint(folder: Path, roles: dict[str, Role], helpers: dict[str, nn.Module]) -> None:
    """Loads weights in place; raises UserError for damaged or unfitting files."""
    for name, network in _files(roles, helpers).items():
        check_file(folder / f"{name}.safetensors")
        load_weights(network, folder / f"{name}.safetensors")
