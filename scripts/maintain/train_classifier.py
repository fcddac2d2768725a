"""Trains one of the small classifiers whose features FD is measured in: `python -m
scripts.maintain.train_classifier digits`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from core.data import ImageData, load_data
from core.errors import command_line
from eval.features.classifiers import (
    CLASSIFIERS,
    Classifier,
    accuracy,
    recipe,
    round_to_stored,
    save_classifier,
    weights_path,
)


def shifted(images: Tensor, most: int, generator: torch.Generator, background: int = 0) -> Tensor:
    """uint8 [B, C, S, S], each image moved by up to `most` pixels in each direction, the background
    coming in."""
    padded = F.pad(images, [most] * 4, value=background)
    side, span = images.shape[-1], 2 * most + 1
    # One slice for each of the few offsets is quicker than a gather for each image.
    offset = torch.randint(span * span, (len(images),), generator=generator)
    out = torch.empty_like(images)
    for k in offset.unique().tolist():
        y, x = divmod(k, span)
        out[offset == k] = padded[offset == k][..., y : y + side, x : x + side]
    return out


def labels_of(data: ImageData, what: str) -> Tensor:
    """int64 [N]: the class of each image, or an attribute."""
    return data.labels if what == "class" else data.attributes[what].labels


def train(
    name: str, root: str | None, progress: bool = True
) -> tuple[Classifier, dict[str, float]]:
    """Trains classifier `name` by its recipe; returns it, rounded as stored, and its accuracies on
    the test split: that of the "class", and of each attribute."""
    spec = CLASSIFIERS[name]
    data, test = load_data(spec.dataset, "train", root), load_data(spec.dataset, "test", root)
    torch.manual_seed(spec.seed)
    generator = torch.Generator().manual_seed(spec.seed)
    classifier = Classifier(spec).to(
        memory_format=torch.channels_last
    )  # with bfloat16, four times as fast on a CPU
    steps = spec.epochs * (len(data) // spec.batch_size)
    optimizer = torch.optim.AdamW(classifier.parameters(), spec.lr, weight_decay=spec.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, spec.lr, total_steps=steps, pct_start=0.25
    )
    with tqdm(total=steps, desc=name, disable=not progress, mininterval=2) as bar:
        for _ in range(spec.epochs):
            order = torch.randperm(len(data), generator=generator)
            for index in order[: len(data) // spec.batch_size * spec.batch_size].split(
                spec.batch_size
            ):
                images = shifted(data.images[index], spec.shift, generator, spec.background)
                with torch.autocast("cpu", torch.bfloat16):
                    logits = classifier.all_logits(images)
                loss = sum(
                    F.cross_entropy(part.float(), labels_of(data, what)[index])
                    for what, part in logits.items()
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    round_to_stored(classifier)
    classifier.eval().to(memory_format=torch.contiguous_format)
    wanted = ["class", *dict(spec.attributes)]
    return classifier, {
        what: accuracy(classifier, test.images, labels_of(test, what), of=what) for what in wanted
    }


@command_line
def main() -> None:
    names = {spec.dataset: name for name, spec in CLASSIFIERS.items()}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=sorted(names))
    parser.add_argument(
        "--root", help="folder of the data set's files, if not where the loader looks"
    )
    parser.add_argument("--out", type=Path, help="weights file to write (default: the shipped one)")
    options = parser.parse_args()
    name = names[options.dataset]
    classifier, reached = train(name, options.root)
    out = options.out or weights_path(name)
    metadata = {"test_accuracy": f"{reached.pop('class'):.4f}", "recipe": recipe(CLASSIFIERS[name])}
    metadata |= {f"test_accuracy_{what}": f"{share:.4f}" for what, share in reached.items()}
    save_classifier(classifier, out, metadata)
    words = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in metadata.items() if k != "recipe")
    print(f"{name}: {words}, {out} ({out.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
