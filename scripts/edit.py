"""Images and their noises, and samples that are changed on their way, as a picture (PNG).

    python -m scripts.edit encode RUN --sampler heun --steps 32 --out a.png
    python -m scripts.edit interpolate RUN --images 0,1,2,3 --sampler rk4 --steps 16 --out b.png
    python -m scripts.edit vary RUN --times 0.3,0.5,0.7 --out c.png
    python -m scripts.edit inpaint RUN --hide bottom --sampler ddpm --steps 50 --resample 10 --out d.png
    python -m scripts.edit switch RUN --labels 7,9 --times 0.9,0.7,0.5,0.3 --out e.png

`encode`: image, noise, and back. `interpolate`: the arc between noises, or between those of images.
`vary`: image-to-image from part noise (SDEdit). `inpaint`: what is hidden is sampled anew, by
replacement in the third column and by RePaint behind it. `switch`: another class from a time on.
Rows are images of the run's own data; docs/editing.md shows what comes out."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import lab
from core.data import DataConfig
from core.errors import UserError, command_line
from core.files import check_place
from core.noise import Noise
from core.pictures import check_drawable, save_png, tile
from core.runs import Run
from core.sampling.editing import check_encodes
from core.sampling.editing.inpaint import visits
from scripts.edit_panels import HIDDEN, Desk, Panel, between, encoded, inpainted, switched, varied
from scripts.setting_options import add_setting_options, chosen_setting, chosen_steps, numbers


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m scripts.edit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = whole.add_subparsers(dest="task", required=True, metavar="TASK")

    def task(name: str, words: str, images: str | None = "0,1,2,3,4,5,6,7"):
        one = tasks.add_parser(name, help=words, description=words)
        one.add_argument("run", help="folder of the run")
        one.add_argument("--out", type=Path, required=True, help="PNG file")
        add_setting_options(one)
        if name != "switch":
            shown = images or "none: noises are drawn"
            words = f"numbers of images of the run's data, with commas (default: {shown})"
            one.add_argument("--images", default=images, help=words)
            one.add_argument("--split", choices=["train", "test"], default="test", help="of those")
            one.add_argument("--folder", help="take the pictures of this folder, by their numbers")
            one.add_argument(
                "--label", type=int, help="class of all rows (default: the image's own)"
            )
        one.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
        return one.add_argument

    add = task("encode", "image, its noise by the solver run backwards, and back")
    add("--to-label", type=int, help="also what the noise becomes for this class")
    add = task("interpolate", "from one noise or image to another, along the arc", None)
    add("--count", type=int, default=9, help="points of the arc (default: 9)")
    add("--rows", type=int, default=4, help="of noises that are drawn (default: 4)")
    add = task("vary", "image-to-image from part noise (SDEdit)")
    add("--times", default="0.2,0.4,0.6,0.8", help="1 is pure noise (default: %(default)s)")
    add = task("inpaint", "sample what is hidden, by replacement and by RePaint")
    add("--hide", choices=HIDDEN, default="bottom", help="default: %(default)s")
    add("--resample", type=int, default=10, help="times that RePaint goes a stretch (default: 10)")
    add("--jump", type=int, default=1, help="intervals of a stretch (default: 1)")
    add("--variants", type=int, default=4, help="runs of RePaint (default: 4)")
    add = task("switch", "tell a sample another class from a time on")
    add("--labels", default="0,1", help="the first class and the second (default: %(default)s)")
    add("--times", default="0.8,0.6,0.4,0.2", help="default: %(default)s")
    add("--rows", type=int, default=6, help="samples (default: 6)")
    return whole


def chosen_images(a: argparse.Namespace, run: Run) -> tuple[Tensor, Tensor | None]:
    """The images (as data are stored) and the labels that the model is told, None where it is told
    none.

    Raises:
        UserError: there are no such images, or they do not fit the model.
    """
    config, spec = run.data, run.spec
    if a.folder:
        config = DataConfig(name="folder", root=a.folder, side=spec.side)
    if config is None:
        raise UserError(f"{run.folder} does not say what it was trained on: give --folder")
    data, wanted = config.load("train" if a.folder else a.split), numbers(a.images, int, "--images")
    if bad := [i for i in wanted if not 0 <= i < len(data)]:
        raise UserError(f"--images: there is no image {bad[0]}, only 0 to {len(data) - 1}")
    if data.channels != spec.channels or data.side != spec.side:
        raise UserError(
            f"images of {data.channels} x {data.side} x {data.side} do not fit this model, which "
            f"was trained on {spec.channels} x {spec.side} x {spec.side}"
        )
    return data.images[wanted], labels_of(a, run, data.labels[wanted], own=not a.folder)


def labels_of(a: argparse.Namespace, run: Run, labels: Tensor, own: bool) -> Tensor | None:
    """int64 [B]: one for all, the images' own, or the null label; None for a model of no classes."""
    classes = run.spec.num_classes
    if a.label is not None:
        if not 0 <= a.label <= classes or not classes:
            raise UserError(f"--label {a.label}: this model knows {classes} classes")
        return torch.full_like(labels, a.label)
    if not classes:
        return None
    return labels if own else torch.full_like(labels, classes)


def total(a: argparse.Namespace, rows: int) -> int:
    """Intervals that the task goes at most, for the bar."""
    steps = a.setting.steps
    if a.task == "encode":
        return steps * (2 + (a.to_label is not None))
    if a.task == "interpolate":
        return steps * (1 + bool(a.images))
    if a.task == "inpaint":
        return visits(steps) + a.variants * visits(steps, a.resample)
    extra = 2 if a.task == "switch" else 0
    return (len(a.times) + extra) * (steps + 1)


def panel(a: argparse.Namespace, run: Run, bar: tqdm) -> Panel:
    """What the task makes."""
    spec, device = run.spec, run.model.device
    images, labels = None, None
    if a.task == "switch":
        first, then = a.labels
        labels = torch.full((a.rows,), first)
    elif a.images:
        images, labels = chosen_images(a, run)
        if a.task == "interpolate" and a.label is None and spec.num_classes:
            labels = torch.full_like(labels, spec.num_classes)  # one for both ends: the null label
    else:
        labels = labels_of(a, run, torch.full((2 * a.rows,), spec.num_classes), own=False)
    rows = len(images) if images is not None else 2 * a.rows if a.task == "interpolate" else a.rows
    bar.reset(total(a, rows))
    rng = Noise(a.seed, torch.arange(rows, device=device))
    told = None if labels is None else labels.to(device)
    desk = Desk(run.model, a.setting, rng, told, lambda: bar.update())
    if a.task == "encode":
        return encoded(desk, images, a.to_label)
    if a.task == "interpolate":
        return between(desk, a.count, images)
    if a.task == "vary":
        return varied(desk, images, a.times)
    if a.task == "inpaint":
        return inpainted(desk, images, a.hide, a.variants, a.resample, a.jump)
    return switched(desk, then, a.times)


def check(a: argparse.Namespace, run: Run) -> None:
    """Raises UserError for what no panel can be made of, before anything is sampled."""
    spec = run.spec
    if run.model.codec.stored.is_floating_point:
        raise UserError("points of the plane have no pixels to edit: give a run on images")
    if spec.text is not None:
        raise UserError("models that read captions are not edited here: use core.sampling.editing")
    check_drawable(spec.channels)
    for name in ("count", "rows", "variants", "resample", "jump"):
        if getattr(a, name, 1) < 1:
            raise UserError(f"--{name} must be at least 1")
    if a.task == "interpolate" and a.images and len(a.images.split(",")) % 2:
        raise UserError(f"--images {a.images}: give pairs, an even number of images")
    if a.task == "encode" or (a.task == "interpolate" and a.images):
        check_encodes(run.model, a.setting)
    if a.task == "inpaint" and run.model.codec.spec != "pixels":
        raise UserError("inpainting hides pixels, and this model works on latents")
    if a.task == "switch" and len(a.labels) != 2:
        raise UserError("--labels: give two classes, such as 7,9")
    told = [k for k in (*getattr(a, "labels", ()), getattr(a, "to_label", None)) if k is not None]
    if told and not spec.num_classes:
        raise UserError("this model is told no classes")
    if bad := [k for k in told if not 0 <= k <= spec.num_classes]:
        raise UserError(f"class {bad[0]}: this model knows 0 to {spec.num_classes - 1}")


@command_line
def main() -> None:
    a = parser().parse_args()
    check_place(a.out)
    for name, kind in (("times", float), ("labels", int)):
        if hasattr(a, name):
            setattr(a, name, numbers(getattr(a, name), kind, f"--{name}"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = lab.load(a.run, device=device, steps=chosen_steps(a))
    a.setting = chosen_setting(a, run.spec.setting)
    check(a, run)
    words = f"{run.name}: {a.setting.label()}"
    with tqdm(desc=words, unit="step", dynamic_ncols=True, disable=None) as bar:
        made = panel(a, run, bar)
    pictures = made.pictures
    scale = max(1, 64 // pictures.shape[-1])
    save_png(tile(pictures.flatten(0, 1), columns=pictures.shape[1]), a.out, scale)
    if made.said:
        print(made.said)


if __name__ == "__main__":
    main()
