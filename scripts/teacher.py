"""Teachers and other models to look at, to check and to pass on: runs, folders in diffusers'
format, and hub ids.

    python -m scripts.teacher info google/ddpm-cifar10-32
    python -m scripts.teacher verify teachers/shipped/fashion_mnist --all
    python -m scripts.teacher verify google/ddpm-cifar10-32 --card rows.jsonl --data cifar10
    python -m scripts.teacher export runs/digits/teacher exported/digits-teacher
    python -m scripts.teacher export runs/digits/progressive exported/digits-in-2-steps --steps 2

verify measures what card.json beside the model promises, or --card, a file like it or rows of
scripts.evaluate (the cheapest row, or all), and exits with code 1 if it is worse by more than 4
standard deviations. export writes diffusers' format: UNet2DModel where that is exact, else with a
module of its own, and a README.md that says how to sample it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import lab
from core.errors import UserError, command_line


def info(a: argparse.Namespace) -> None:
    from eval.card import read_card
    from teachers.diffusers_format.describe import describe
    from teachers.diffusers_format.read import published_folder

    run = lab.load(a.run, a.weights)
    lines = describe(run)
    card = read_card(published_folder(run) or run.folder)
    for row in card.rows if card else ():
        lines[f"card: {row.sampler} x{row.steps}"] = (
            f"{row.metric} {row.fid:.4g} ± {row.fid_std:.2g}, n = {row.n}, {row.extractor}"
        )
    width = max(map(len, lines))
    for subject, words in lines.items():
        print(f"{subject:<{width}}  {words}")


def check(a: argparse.Namespace) -> None:
    from eval.card import read_card, read_rows_as_card, verify
    from teachers.diffusers_format.read import published_folder

    run = lab.load(a.run)
    card = (
        read_rows_as_card(a.card, run.name)
        if a.card
        else read_card(published_folder(run) or run.folder)
    )
    if card is None:
        raise UserError(
            f"{a.run} has no card.json, so there is nothing it promises: give --card FILE, a card or rows that python -m "
            f"scripts.evaluate --run {a.run} --steps 50 --n 300 --sets 3 --extractor NAME --out rows.jsonl has measured"
        )
    data = {"name": a.data, "root": a.data_root, "side": a.data_side} if a.data else None
    verdicts = []
    for verdict in verify(a.run, card, lab.load, a.all, data, a.device):
        if verdict.other_weights:
            print(
                f"warning: {card.file} describes other weights ({verdict.other_weights[:12]}...) than these",
                file=sys.stderr,
            )
        print(verdict, flush=True)
        verdicts.append(verdict)
    if any(verdict.worse for verdict in verdicts):
        sys.exit(1)


def write(a: argparse.Namespace) -> None:
    from teachers.diffusers_format.write import export

    run = lab.load(a.run, a.weights, steps=a.steps)
    if a.steps is not None and run.weights_file.parent.name != f"{a.steps:04d}":
        kept = ", ".join(str(int(f.name)) for f in sorted(Path(a.run).glob("for-steps/[0-9]*")))
        there = f"there are {kept}" if kept else "it is one network for all: leave --steps out"
        raise UserError(f"{a.run} keeps no network for {a.steps} steps: {there}")
    print(f"wrote {a.out}: {export(run, a.out)}")


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.teacher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="info|verify|export")
    for name, function, words in (
        ("info", info, "what a model is"),
        ("verify", check, "whether its samples are as good as its card says"),
        ("export", write, "write it in diffusers' format"),
    ):
        command = commands.add_parser(name, help=words, description=words)
        command.set_defaults(function=function)
        command.add_argument(
            "run",
            help="folder of a run, folder in diffusers' format, or hub id such as google/ddpm-cifar10-32",
        )
        if name == "verify":
            command.add_argument(
                "--all", action="store_true", help="every row of the card, not only the cheapest"
            )
            command.add_argument(
                "--data",
                help="what to compare with, where neither run nor card says: such as cifar10",
            )
            command.add_argument("--data-root", help="where the files of --data are")
            command.add_argument(
                "--data-side", type=int, help="side of the images of --data folder"
            )
            command.add_argument(
                "--card",
                type=Path,
                help="a file like card.json, or rows of scripts.evaluate (.jsonl)",
            )
            command.add_argument("--device", help="default: a GPU if there is one")
        else:
            command.add_argument(
                "--weights", choices=["ema", "raw"], default="ema", help="default: %(default)s"
            )
        if name == "export":
            command.add_argument(
                "out", type=Path, help="folder to write; must not exist or be empty"
            )
            command.add_argument(
                "--steps",
                type=int,
                help="of a run that keeps a network for each number of steps: which",
            )
    a = parser.parse_args()
    with torch.no_grad():
        a.function(a)


if __name__ == "__main__":
    main()
