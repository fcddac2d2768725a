"""Whether a model shows what captions say that it never saw: the share of samples in which a
classifier sees the group, skin tone and gender of their caption, and the distance to the real
images of these captions, against the guidance scale. Writes rows (JSON, one a line), a plot and a
grid.

    python -m scripts.captions runs/emoji/teacher --guidance-scale 1,2,3,5 --steps 16 \\
        --sampler unipc --n 816 --out runs/emoji/captions
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import lab
from core.config import parse
from core.errors import UserError, command_line
from core.files import check_place
from core.noise import check_seed
from core.sampling.sample import expected_nfe
from eval.captions import fidelity, grid, plot, real_row, table, write_rows
from eval.features.extractors import ClassifierExtractor, make_extractor
from eval.sweep.config import Sampled
from scripts.setting_options import (
    add_setting_options,
    check_between,
    chosen_steps,
    given_settings,
)


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.captions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="folder of a run that reads captions")
    add_setting_options(parser, several=True)
    parser.add_argument("--n", type=int, default=204, help="samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--extractor", default="emoji-cnn", help="default: %(default)s")
    parser.add_argument(
        "--weights", choices=["ema", "raw"], default="ema", help="default: %(default)s"
    )
    parser.add_argument("--lines", type=int, default=10, help="captions of the grid")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    a = parser.parse_args()
    check_between("--n", a.n, 4)
    check_between("--lines", a.lines, 1, 1000)
    check_seed(a.seed)
    check_place(a.out, folder=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = lab.load(a.run, a.weights, device, chosen_steps(a))
    if run.data is None:
        raise UserError(f"{a.run} does not say what it was trained on")
    data, extractor = run.data.load("test"), make_extractor(a.extractor, run.model.device)
    if not isinstance(extractor, ClassifierExtractor):
        raise UserError(f"--extractor {a.extractor} is no classifier: take emoji-cnn")
    settings = parse(Sampled, given_settings(a), "command line").settings(run.spec.setting)
    for setting in settings:
        expected_nfe(run.model, setting)  # refused before anything is sampled
    rows = [real_row(data, extractor)]
    for setting in settings:
        rows.append(fidelity(run, data, extractor, setting, a.n, a.seed))
        write_rows(rows, a.out / "captions.jsonl")
    plot(rows, a.out / "captions.png")
    grid(run, data, settings, a.lines, a.out / "grid.png", a.seed)
    print(table(rows))


if __name__ == "__main__":
    main()
