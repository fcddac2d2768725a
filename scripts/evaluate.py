"""Measures runs over step counts and appends the rows to a curves file; points that are there
already are not repeated.

    python -m scripts.evaluate configs/digits/curve.yaml
    python -m scripts.evaluate configs/digits/curve.yaml n=1000 sets=3 out=runs/x/curves.jsonl
    python -m scripts.evaluate --run runs/digits/consistency --n 300 --extractor digits-cnn
    python -m scripts.evaluate --run runs/digits/teacher --sampler ddim,unipc --steps 1,2,4 \\
        --n 449 --extractor digits-cnn
    torchrun --standalone --nproc_per_node 2 -m scripts.evaluate configs/digits/curve.yaml

The last line shares the samples among processes, on GPUs or on processor cores; put `--` ahead of
options of ours, or torchrun takes them for its own (`-m scripts.evaluate -- --run ...`).
`accelerate launch --num_processes N` does the same on GPUs; with --cpu it starts one process only,
whatever N is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from core.config import apply_overrides, parse, read_config
from core.errors import UserError, command_line
from core.processes import start_processes
from eval.curves.table import text_tables
from eval.sweep.config import SweepConfig
from eval.sweep.run import run_sweep
from lab import load
from scripts.setting_options import add_setting_options, given_settings


def from_options(a: argparse.Namespace) -> dict:
    """The sweep config that `--run` and the options beside it describe."""
    if not (a.n and a.extractor):
        raise UserError("--run needs --n and --extractor too: --n 449 --extractor digits-cnn")
    extractors = a.extractor.split(",")
    if not a.out and not Path(a.run).is_dir():
        file = f"runs/{Path(a.run).name}.jsonl"
        raise UserError(
            f"--run {a.run} is no folder here: say with --out where its rows go, such as --out "
            f"{file}"
        )
    return {
        "out": a.out or str(Path(a.run) / "curves.jsonl"),
        "data": {"name": a.data, "root": a.data_root, "side": a.data_side} if a.data else None,
        "extractor": extractors[0] if len(extractors) == 1 else extractors,
        "n": a.n,
        "sets": a.sets,
        "seed": a.seed,
        "entries": [{"run": a.run, "weights": a.weights, **given_settings(a)}],
    }


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config",
        nargs="*",
        help="a sweep's YAML file, then key=value overrides (with --run: overrides only)",
    )
    parser.add_argument("--run", help="a run, a diffusers folder or a hub id, instead of a config")
    parser.add_argument(
        "--weights", default="ema", help="ema, raw or 'half-life N' (default: %(default)s)"
    )
    add_setting_options(parser, several=True)
    parser.add_argument(
        "--extractor",
        help="digits-cnn, fashion-cnn, emoji-cnn, inception-v3-compat or "
        "inception-v3-compat-bf16; with commas between several",
    )
    parser.add_argument("--n", type=int, help="images per set")
    parser.add_argument(
        "--sets", type=int, default=1, help="disjoint sets: 1, or at least 3 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--data",
        help="for published models, which do not say: digits, fashion_mnist, cifar10 or folder",
    )
    parser.add_argument("--data-root", help="where the files of --data are")
    parser.add_argument("--data-side", type=int, help="side of the images of --data folder")
    parser.add_argument("--out", help="curves file (default: curves.jsonl in the run's folder)")
    a = parser.parse_intermixed_args()
    if a.run:
        values, source = from_options(a), "command line"
        for override in a.config:
            if "=" not in override:
                raise UserError(
                    f"'{override}' beside --run: give either a config or --run, and overrides as "
                    "key=value"
                )
        values = apply_overrides(values, a.config)
    elif a.config:
        values, source = read_config(a.config[0], a.config[1:]), a.config[0]
    else:
        raise UserError(
            "nothing to measure: give a sweep's YAML file, or --run FOLDER (see --help)"
        )
    config = parse(SweepConfig, values, source)
    rows = run_sweep(config, load)
    if start_processes().is_main_process:
        print(text_tables(rows))


if __name__ == "__main__":
    main()
