"""An average of another half-life, after training, put together from the snapshots of a run
(Karras et al. 2024): a folder that every other command takes as a run.

    python -m scripts.train configs/digits/flow.yaml snapshots.every=20000 run=runs/flow
    python -m scripts.ema runs/flow --half-life 2000,20000
    python -m scripts.evaluate --run runs/flow-half-life-2000 --n 300 --extractor digits-cnn
    python -m scripts.evaluate --run runs/flow --weights "half-life 2000" --n 300 \\
        --extractor digits-cnn

Half-lives are in images, up to half of what the run has seen. The last line does the same without
a folder. What is recorded as the half-life is that of the average as it was put together."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from core.config import read_config
from core.errors import UserError, command_line
from core.files import read_json, whole_folder, write_text
from core.model import ModelSpec
from core.runs import NotARun, post_hoc
from core.training.checkpoints import read_newest, write_checksums
from core.training.origin import read_price
from core.training.snapshots import Synthesis
from core.weights import read_spec, save_weights
from scripts.setting_options import numbers


def write_average(run: Path, half_life: float, out: Path) -> tuple[float, float]:
    """Puts an average of `run` into a run folder of its own; returns its true half-life and how far
    its profile is from the wanted one, over the norm of that.

    Raises:
        UserError: see core.runs.post_hoc; or there is no run, or something else is at `out`.
    """
    if out.exists():
        raise UserError(f"{out} exists: give another --out")

    def read(checkpoint: Path) -> tuple[str, Synthesis, dict, ModelSpec]:
        made = post_hoc(run, checkpoint, half_life)
        read_price(checkpoint)  # its mistakes are named where they are
        price = read_json(checkpoint / "price.json", "copy it again from where it is whole")
        return checkpoint.name, made, price, read_spec(checkpoint / "ema.safetensors")

    found = read_newest(run, read) if (run / "config.yaml").is_file() else None
    if found is None:
        raise NotARun(f"{run} is no run with a checkpoint: train it first")
    name, made, price, spec = found
    config = read_config(run / "config.yaml") | {"run": str(out)}
    with whole_folder(out) as partial:
        folder = partial / "checkpoints" / name
        folder.mkdir(parents=True)
        save_weights(folder / "ema.safetensors", made.state, spec)
        write_text(
            folder / "price.json", json.dumps(price | {"half_life": made.half_life}, indent=1)
        )
        write_checksums(folder)
        write_text(partial / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    return made.half_life, made.off


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.ema",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a run with snapshots (snapshots.every)")
    parser.add_argument(
        "--half-life", required=True, metavar="N", help="images; with commas between several"
    )
    parser.add_argument("--out", type=Path, help="default: RUN-half-life-N beside the run")
    a = parser.parse_args()
    half_lives = numbers(a.half_life, float, "--half-life")
    if a.out and len(half_lives) > 1:
        raise UserError(f"--out {a.out} for {len(half_lives)} half-lives: give one")
    for half_life in half_lives:
        out = a.out or a.run.with_name(f"{a.run.name}-half-life-{half_life:g}")
        true, off = write_average(a.run, half_life, out)
        print(f"{out}: half-life {true:.0f} images, profile off by {off:.1%}")


if __name__ == "__main__":
    main()
