"""Making stored pairs: samples of a model with the address of the noise that they came from."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from core.condition import Condition
from core.counting import count_evals
from core.data.pairs import (
    SHARD,
    Manifest,
    PairRecipe,
    read_manifest,
    shard_name,
    write_manifest,
)
from core.errors import UserError
from core.files import check_place, sha256_of, whole_file
from core.locks import only_one
from core.noise import Noise
from core.processes import from_main, gather_in_order, share_of, start_processes, sum_over
from core.runs import Run
from core.sampling.sample import grid_of, sample, sampler_of
from core.setting import Setting


def trained_text(run: Run) -> Tensor | None:
    """int64 [N, L]: the captions that a run learned from; None where it reads none.

    Raises:
        UserError: the run does not say what it was trained on, or that is not there.
    """
    if run.spec.text is None:
        return None
    if run.data is None:
        raise UserError(f"{run.folder} does not say which captions it was trained on")
    return run.data.load().seen_by(run.spec.num_classes, run.spec.text).text


@torch.no_grad()
def generate_pairs(
    run: Run,
    folder: Path,
    count: int,
    sampler: str,
    steps: int,
    seed: int,
    guidance_scale: float = 1.0,
    shard: int = 4096,
    batch_size: int = 256,
) -> None:
    """Samples `count` images deterministically and stores them with the address of their noise;
    goes on where it stopped, and makes shards again that are not what was written. Processes that a
    launcher started share out each shard, and the main one writes it.

    A shard holds x0 (float16, unclamped) [n, C, H, W], label int64 [n], index int64 [n], and of a
    model that reads captions text int64 [n, L], drawn from the captions that it learned from. The
    noise of sample i is not stored: it is Noise(seed, i).normal(..., "prior"), exactly
    reproducible, at half the disk space.

    Raises:
        UserError: a stochastic sampler, a folder that holds pairs of another recipe, or one in
            which another process makes pairs.
    """
    setting = Setting(sampler=sampler, steps=steps, guidance_scale=guidance_scale)
    if sampler_of(setting).stochastic:
        raise UserError(
            f"sampler '{sampler}' adds noise, so its result is not paired with its start: "
            "use ddim, heun, dpm++2m or unipc"
        )
    classes, text = run.spec.num_classes, trained_text(run)
    if count < 1:
        raise UserError(f"count = {count}: at least 1 pair")
    recipe = PairRecipe(
        run=str(run.folder),
        run_name=run.name,
        weights_sha256=run.weights_sha256,
        sampler=sampler,
        steps=steps,
        count=count,
        seed=seed,
        guidance_scale=guidance_scale,
        shard=shard,
        channels=run.spec.shape[0],
        side=run.spec.shape[1],
        num_classes=classes,
        text_length=0 if text is None else text.shape[1],
        codec=run.spec.codec_sha256,
    )
    grid_of(setting, run.model)  # refused before anything is written
    _check_folder(folder)
    busy = f"another process makes pairs in {folder}: wait for it, or give another out="
    state = start_processes(cpu=run.model.device.type == "cpu")
    main = state.is_main_process
    with only_one(folder, busy) if main else nullcontext():
        manifest = from_main(_begun(folder, recipe) if main else None, state)
        folder.mkdir(parents=True, exist_ok=True)
        _make_shards(run, folder, setting, manifest, batch_size, state)
        state.wait_for_everyone()


def _begun(folder: Path, recipe: PairRecipe) -> Manifest:
    """What there is of a recipe's pairs, but for shards that were damaged or have gone."""
    manifest = read_manifest(folder) or Manifest(**recipe.model_dump())
    for key, value in recipe.model_dump().items():
        if getattr(manifest, key) != value:
            raise UserError(
                f"{folder} holds pairs of another recipe: {key} is {getattr(manifest, key)!r} there and {value!r} here; "
                "choose another folder, or delete that one"
            )
    whole = {name: sha for name, sha in manifest.shards.items() if _is_whole(folder / name, sha)}
    for name in manifest.shards.keys() - whole.keys():
        print(f"{folder / name} is damaged or missing and is made again", file=sys.stderr)
        if (folder / name).is_symlink():  # what it leads to is not written
            (folder / name).unlink()
    kept = len(whole) / max(len(manifest.shards), 1)
    spent = {"evals": manifest.evals * kept, "seconds": manifest.seconds * kept}
    return manifest.model_copy(update={"shards": whole, **spent})


def _check_folder(folder: Path) -> None:
    """Raises UserError where pairs cannot be written, or something else lies: what is hidden and
    shards without a manifest, as a kill leaves them, do not count."""
    check_place(folder, folder=True)
    if folder.is_dir() and not (folder / "pairs.json").exists():
        for name in sorted(entry.name for entry in folder.iterdir()):
            if not name.startswith(".") and not SHARD.fullmatch(name):
                raise UserError(
                    f"{folder} holds {name!r} and no pairs.json: choose another folder for pairs"
                )


def _is_whole(file: Path, sha256: str) -> bool:
    return file.is_file() and sha256_of(file) == sha256


def _make_shards(
    run: Run,
    folder: Path,
    setting: Setting,
    manifest: Manifest,
    batch_size: int,
    state: PartialState,
) -> None:
    """The shards that the manifest lacks, each followed by a manifest that names it."""
    count, shard, seed = manifest.count, manifest.shard, manifest.seed
    shards, classes, text = -(-count // shard), manifest.num_classes, trained_text(run)
    done = min(len(manifest.shards) * shard, count)
    with tqdm(
        total=count,
        initial=done,
        desc=f"pairs of {run.name}",
        unit="img",
        dynamic_ncols=True,
        disable=not state.is_main_process,
    ) as bar:
        for k in range(shards):
            name = shard_name(k)
            if name in manifest.shards:
                continue
            begun = time.perf_counter()
            indices = torch.arange(k * shard, min((k + 1) * shard, count))
            mine = indices[share_of(len(indices), state)]
            parts, labels = [torch.empty(0, *run.spec.shape).half()], [torch.empty(0).long()]
            texts = [] if text is None else [text[:0]]
            with count_evals(run.model.network) as counter:
                for part in mine.split(batch_size) if len(mine) else ():
                    rng = Noise(seed, part.to(run.model.device))
                    label = rng.integers(classes, "label") if classes else None
                    condition = Condition(label=label)
                    if text is not None:
                        chosen = text[rng.integers(len(text), "caption").cpu()]
                        condition = condition._replace(text=chosen.to(run.model.device))
                        texts.append(chosen)
                    x0 = sample(run.model, setting, rng, condition)
                    parts.append(x0.half().cpu())
                    labels.append(torch.zeros(len(part)).long() if label is None else label.cpu())
                    bar.update(len(part) * state.num_processes)
            shard_of = {"x0": torch.cat(parts), "label": torch.cat(labels)}
            if text is not None:
                shard_of["text"] = torch.cat(texts)
            shard_of = {
                key: gather_in_order(tensor, len(indices), state)
                for key, tensor in shard_of.items()
            }
            (evals,) = sum_over([counter.evals], state)
            if not state.is_main_process:
                continue
            with whole_file(folder / name) as partial:
                save_file({**shard_of, "index": indices}, partial)
                digest = sha256_of(partial)
            manifest = manifest.model_copy(
                update={
                    "shards": {**manifest.shards, name: digest},
                    "evals": manifest.evals + evals,
                    "seconds": manifest.seconds + time.perf_counter() - begun,
                }
            )
            write_manifest(folder, manifest)
