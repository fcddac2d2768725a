"""Atomic checkpoints: a folder written beside its final name and renamed when complete, the newest
kept."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import torch

from core.errors import UserError
from core.files import whole_folder, write_text
from core.model_spec import ModelSpec, load_weights, save_weights


def latest_checkpoint(run: Path, steps: int | None = None) -> Path | None:
    """The run's newest complete checkpoint; folders are named IMAGES-STAGE.

    With `steps`, the weights that were kept for sampling in that many steps, if the run kept any.
    """
    if steps is not None and (kept := run / "for-steps" / f"{steps:04d}").is_dir():
        return kept
    return max((run / "checkpoints").glob("[0-9]*-[0-9]*"), key=lambda p: p.name, default=None)


def save_checkpoint(
    run: Path,
    spec: ModelSpec,
    raw: torch.nn.Module,
    ema: torch.nn.Module,
    frozen: dict[str, torch.nn.Module],
    state: dict,
    price: dict,
) -> Path:
    """Writes checkpoints/IMAGES-STAGE with raw, EMA and frozen weights (safetensors) the trainer's
    state, and what training has cost so far (price.json); drops older ones."""
    folder = run / "checkpoints"
    final = folder / f"{state['images']:012d}-{state['stage']:02d}"
    if final.is_dir():
        return final  # a resumed run came by here again, with the same bits
    with whole_folder(final) as partial:
        save_weights(partial / "raw.safetensors", raw.state_dict(), spec)
        save_weights(partial / "ema.safetensors", ema.state_dict(), spec)
        for name, module in frozen.items():
            save_weights(partial / f"frozen-{name}.safetensors", module.state_dict(), spec)
        torch.save(state, partial / "state.pt")
        write_text(partial / "price.json", json.dumps(price, indent=1))
    for old in folder.iterdir():
        if old != final:
            shutil.rmtree(old)
    return final


def keep_for_steps(run: Path, checkpoint: Path, steps: int) -> None:
    """Copies a checkpoint's weights and price (not its training state) to where
    `latest_checkpoint(run, steps)` finds them."""
    final = run / "for-steps" / f"{steps:04d}"
    with whole_folder(final) as partial:
        for name in ("raw.safetensors", "ema.safetensors", "price.json"):
            shutil.copy2(checkpoint / name, partial / name)


def read_state(folder: Path) -> dict:
    """The trainer's state in a checkpoint; raises UserError if the file is damaged, or if there are
    but weights to use."""
    if not (folder / "state.pt").exists() and not (folder / "raw.safetensors").exists():
        raise UserError(
            f"{folder.parents[1]} is a shipped model, weights without the state of their training: use it as it is, or give "
            "run=ANOTHER_FOLDER to train one"
        )
    try:
        return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{folder / 'state.pt'} is damaged or incomplete ({reason}): delete {folder} to begin again"
        ) from error


def load_checkpoint(
    folder: Path, raw: torch.nn.Module, ema: torch.nn.Module, frozen: dict[str, torch.nn.Module]
) -> dict:
    """Loads weights in place and returns the trainer's state; raises UserError for damaged or
    unfitting files."""
    state = read_state(folder)
    load_weights(raw, folder / "raw.safetensors")
    load_weights(ema, folder / "ema.safetensors")
    for name, module in frozen.items():
        load_weights(module, folder / f"frozen-{name}.safetensors")
    return state
