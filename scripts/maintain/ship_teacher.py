"""Make a trained run into a folder that can be shipped: averaged weights in half precision, and a
model card of measured rows.

    python -m scripts.maintain.ship_teacher runs/digits/teacher teachers/shipped/digits
    python -m scripts.evaluate --run teachers/shipped/digits ... --out rows.jsonl
    python -m scripts.maintain.ship_teacher --card rows.jsonl teachers/shipped/digits

The folder is a run like any other to whoever samples from it or distils it. The card (README.md for
people, card.json for `python -m scripts.teacher verify`) holds the rows that were measured on just
these weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
import yaml

import lab
from core.autoencoders import FOLDER, copy_autoencoder
from core.config import read_config
from core.errors import UserError, command_line
from core.files import whole_folder, write_text
from core.runs import Run
from core.training.checkpoints import latest_checkpoint
from core.weights import read_spec, read_weights, save_weights
from eval.curves.table import markdown_tables
from eval.curves_file import read_rows
from eval.rows import Row

LARGEST = 10e6  # bytes of weights that belong in a repository
LICENCES = {
    "digits": "scikit-learn's digits: the test set of UCI's handwritten digits (CC BY 4.0)",
    "fashion_mnist": "Fashion-MNIST: MIT, Zalando SE",
    "cifar10": "CIFAR-10: no licence is stated; cite Krizhevsky 2009",
}


def ship(run: Path, out: Path) -> Path:
    """Copies config, price and averaged weights (float16) of a run, and its autoencoder where it is
    in latents, to `out`, which must not exist. Returns the weights' file.

    Raises:
        UserError: `out` exists, or the weights are larger than a repository should carry.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another folder, or remove it first")
    lab.load(run)  # refuses what is no run
    checkpoint = latest_checkpoint(run)
    state = {
        name: tensor.half() for name, tensor in read_weights(checkpoint / "ema.safetensors").items()
    }
    size = sum(2 * tensor.numel() for tensor in state.values())
    size += sum(file.stat().st_size for file in (run / FOLDER).glob("*"))
    if size > LARGEST:
        raise UserError(
            f"{run}: {size / 1e6:.1f} MB of weights in half precision, more than the {LARGEST / 1e6:g} MB to ship"
        )
    config = read_config(run / "config.yaml")
    if config["data"].get("root") and config["data"]["name"] != "folder":
        config["data"]["root"] = None  # where it lies on this machine helps nobody elsewhere
    config["data"].pop("codec", None)  # nor this: the autoencoder comes with the run
    with whole_folder(out) as partial:
        folder = partial / "checkpoints" / checkpoint.name
        folder.mkdir(parents=True)
        save_weights(folder / "ema.safetensors", state, read_spec(checkpoint / "ema.safetensors"))
        shutil.copy2(checkpoint / "price.json", folder / "price.json")
        copy_autoencoder(run, partial)
        write_text(partial / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    return out / "checkpoints" / checkpoint.name / "ema.safetensors"


def card_text(run: Run, rows: list[Row]) -> str:
    """The card for people."""
    spec = run.spec
    config = read_config(run.folder / "config.yaml")
    parameters = sum(p.numel() for p in run.model.parameters())
    chosen = {
        key: config[key] for key in ("model", "method", "optimizer", "ema", "train", "budget")
    }
    classes = (
        f"{spec.num_classes} classes and the null label {spec.num_classes}"
        if spec.num_classes
        else "unconditional"
    )
    return f"""# {config["data"]["name"]} teacher

{parameters / 1e6:.2f} M parameters, images of {spec.channels}x{spec.side}x{spec.side}, {classes}.
Averaged weights ({run.weights}) in half precision, sha256 `{run.weights_sha256}`.

Trained on {run.train_images:,} images ({run.train_evals:,.0f} network evaluations, {run.train_seconds / 60:.0f} minutes) by
`python -m scripts.train configs/{config["data"]["name"]}/teacher.yaml` with these keys:

```yaml
{yaml.safe_dump(chosen, sort_keys=False).rstrip()}
```

## What was measured on these weights

{markdown_tables(rows)}

`python -m scripts.teacher verify {run.folder}` measures the cheapest of these again and compares.

## Licence

Weights: MIT, as this repository. Data: {LICENCES.get(config["data"]["name"], "the owner's")}.
"""


def write_card(folder: Path, curves: Path) -> None:
    """README.md and card.json in `folder` from the rows of `curves` that were measured on its
    weights.

    Raises:
        UserError: no row was measured on these weights.
    """
    run = lab.load(folder)
    rows = [row for row in read_rows(curves) if row.weights_sha256 == run.weights_sha256]
    if not rows:
        raise UserError(
            f"{curves} has no row measured on {run.weights_file} (sha256 {run.weights_sha256[:12]}...)"
        )
    for name, text in (
        (
            "card.json",
            json.dumps({"rows": [row.model_dump() for row in rows]}, indent=1),
        ),
        ("README.md", card_text(run, rows)),
    ):
        write_text(folder / name, text)


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.maintain.ship_teacher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", type=Path, help="folder of a trained run")
    parser.add_argument("folder", type=Path, help="folder to ship")
    parser.add_argument(
        "--card",
        type=Path,
        metavar="CURVES",
        help="write the card of a shipped folder from these rows instead",
    )
    a = parser.parse_args()
    if (a.run is None) == (a.card is None):
        raise UserError("give either RUN FOLDER, or --card CURVES FOLDER")
    if a.card:
        write_card(a.folder, a.card)
        print(f"wrote {a.folder / 'README.md'} and card.json")
    else:
        file = ship(a.run, a.folder)
        print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    with torch.no_grad():
        main()
