"""Sample images from a run, as a grid (PNG) or as single files; optionally a film of the running
guess. What is not said about how, the model knows: a student is sampled as it was trained to be.

    python -m scripts.sample runs/digits/consistency --out samples.png
    python -m scripts.sample runs/digits/teacher --sampler unipc --steps 8 --out samples.png
    python -m scripts.sample runs/digits/teacher --steps 16 --label 3 --guidance-scale 2 \\
        --count 100 --folder out/
    python -m scripts.sample runs/emoji/teacher --caption "woman teacher: dark skin tone" \\
        --guidance-scale 3 --out samples.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

import lab
from core.errors import UserError, command_line
from core.files import check_place
from core.pictures import check_drawable, save_png, sheet, tile
from core.sampling.sample import sample_images
from core.sampling.solvers import Progress
from scripts.setting_options import (
    add_setting_options,
    check_between,
    chosen_setting,
    chosen_steps,
)

FILMED = 8  # samples of a trajectory


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="folder of the run")
    add_setting_options(parser)
    parser.add_argument("--count", type=int, default=64, help="images (default: %(default)s)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="sample i depends on (seed, i) alone (default: %(default)s)",
    )
    parser.add_argument(
        "--label", type=int, help="class of all images (default: classes take turns)"
    )
    parser.add_argument(
        "--caption",
        help="caption of all images, of a model that reads them (default: held-out ones take turns)",
    )
    parser.add_argument(
        "--weights", default="ema", help="ema, raw or 'half-life N' (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="PNG file for the grid")
    parser.add_argument(
        "--folder", type=Path, help="folder for single PNG files, 000000.png and on"
    )
    parser.add_argument(
        "--trajectory",
        type=Path,
        help=f"PNG of the running guess of x0: one row per step, first {FILMED} samples",
    )
    a = parser.parse_args()
    if not (a.out or a.folder or a.trajectory):
        raise UserError("nowhere to write: give --out, --folder or --trajectory")
    check_between("--count", a.count, 1)
    check_between("--batch-size", a.batch_size, 1)
    for file in (a.out, a.trajectory):
        if file:
            check_place(file)
    if a.folder:
        check_place(a.folder, folder=True)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = lab.load(a.run, a.weights, device, chosen_steps(a))
    setting = chosen_setting(a, run.spec.setting)
    points = run.model.codec.stored.is_floating_point
    if points and (a.folder or a.trajectory):
        raise UserError("points are written as one picture: give --out alone")
    if not points:
        check_drawable(run.spec.channels)
    film: list[torch.Tensor] = []
    parts = []
    with tqdm(
        total=a.count * setting.steps,
        desc=f"{run.name}: {setting.label()}",
        unit="step",
        dynamic_ncols=True,
        disable=None,
    ) as bar:
        for indices in torch.arange(a.count).split(a.batch_size):

            def after_step(
                p: Progress, first: bool = int(indices[0]) == 0, size: int = len(indices)
            ) -> None:
                bar.update(size)
                if first and a.trajectory:
                    film.append(run.model.codec.decode(p.x0[:FILMED]).cpu())

            given = (a.seed, a.label, after_step, a.caption)
            parts.append(sample_images(run.model, setting, indices, *given))
    images = torch.cat(parts)
    picture, scale = sheet(images, columns=max(1, round(a.count**0.5)))
    if a.out:
        save_png(picture, a.out, scale)
    if a.folder:
        for i, image in enumerate(images):
            save_png(image, a.folder / f"{i:06d}.png")
    if a.trajectory:
        save_png(tile(torch.cat(film), columns=len(film[0])), a.trajectory, scale)


if __name__ == "__main__":
    main()
