"""Whether samples show what their captions say, by a classifier that learned from real images, and
how far they are from the real images of those captions."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from core.config import Strict
from core.counting import count_evals
from core.data import ImageData
from core.errors import UserError
from core.files import write_text
from core.networks.captions import caption_set
from core.runs import Run
from core.sampling.sample import sample_images
from core.setting import Setting
from eval.curves.canvas import SMALL, broken, pyplot, save
from eval.features.classifiers import predicted
from eval.features.extractors import ClassifierExtractor
from eval.metrics.distances import bootstrap_std, frechet_distance, statistics
from eval.text import markdown_table

BATCH = 64
RESAMPLES = 20


class FidelityRow(Strict):
    """One measured point: samples of the held-out captions, which take turns, under one setting."""

    dataset: str
    """with its split"""
    reference_sha256: str
    """of the held-out images and captions"""
    extractor: str
    """the classifier"""
    extractor_sha256: str
    """of its weights"""
    run: str
    """name of the run, or "real" for the held-out images themselves"""
    weights_sha256: str | None = None
    """of the run's weights"""
    train_images: int | None = None
    """images that the run has seen"""
    setting: Setting | None = None
    """how it was sampled"""
    nfe: float = Field(default=0.0, ge=0)
    """network evaluations per image, counted"""
    seed: int = 0
    """sample i depends on (seed, i) alone"""
    n: int = Field(ge=2)
    """images"""
    fd: float | None = None
    """Fréchet distance to the held-out images in the classifier's features"""
    fd_std: float | None = None
    """its error bar, by the bootstrap over images"""
    shares: dict[str, float]
    """of samples that the classifier gives the value which the caption says, by attribute; "all":
    every one of them"""


def _places(run: Run, data: ImageData) -> Tensor:
    """int64 [H]: which image of the split belongs to each held-out caption of the run's set.

    Raises:
        UserError: the run reads no captions, or the split lacks one of them.
    """
    if run.spec.text is None:
        raise UserError(f"{run.folder} reads no captions: train a network with model.network.text")
    place = {caption: i for i, caption in enumerate(data.captions)}
    held_out = caption_set(run.spec.text.captions).held_out
    if missing := [caption for caption in held_out if caption not in place]:
        raise UserError(
            f"the {data.split} split of {data.name} has no image of '{missing[0]}', which "
            f"{run.folder} holds out: it is another version of the data"
        )
    return torch.tensor([place[caption] for caption in held_out])


def wanted(data: ImageData) -> dict[str, Tensor]:
    """What each caption says, int64 [N]: the class, and the attributes."""
    return {"class": data.labels} | {name: a.labels for name, a in data.attributes.items()}


def shares(extractor: ClassifierExtractor, images: Tensor, said: dict[str, Tensor]) -> dict:
    """Of images [N, C, S, S], the shares that the classifier sees as `said` ([N] each)."""
    seen = predicted(extractor.classifier, images.to(extractor.device))
    right = {name: seen[name].cpu() == value for name, value in said.items() if name in seen}
    right["all"] = torch.stack(list(right.values())).all(0)
    return {name: float(hit.float().mean()) for name, hit in right.items()}


def real_row(data: ImageData, extractor: ClassifierExtractor) -> FidelityRow:
    """The held-out images themselves: what the classifier makes of pictures that are right."""
    return FidelityRow(
        **_protocol(data, extractor),
        run="real",
        n=len(data),
        shares=shares(extractor, data.images, wanted(data)),
    )


def fidelity(
    run: Run,
    data: ImageData,
    extractor: ClassifierExtractor,
    setting: Setting,
    n: int,
    seed: int = 0,
) -> FidelityRow:
    """n samples of the held-out captions, in turn, against the split `data` that has their images.

    Raises:
        UserError: the setting does not fit the run, or its captions are not the data's.
    """
    place = _places(run, data)
    chosen = place[torch.arange(n) % len(place)]
    with count_evals(run.model.network) as counter:
        parts = [sample_images(run.model, setting, i, seed) for i in torch.arange(n).split(BATCH)]
    images = torch.cat(parts)
    features, real = extractor(images), statistics(extractor(data.images))
    return FidelityRow(
        **_protocol(data, extractor),
        run=run.name,
        weights_sha256=run.weights_sha256,
        train_images=run.train_images,
        setting=setting,
        nfe=counter.forwards / n,
        seed=seed,
        n=n,
        fd=frechet_distance(statistics(features), real),
        fd_std=bootstrap_std(features, real, RESAMPLES),
        shares=shares(extractor, images, {k: v[chosen] for k, v in wanted(data).items()}),
    )


def _protocol(data: ImageData, extractor: ClassifierExtractor) -> dict:
    return {
        "dataset": f"{data.name} {data.split}",
        "reference_sha256": data.sha256,
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
    }


def write_rows(rows: list[FidelityRow], file: Path) -> None:
    """One JSON object a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(row.model_dump_json() + "\n" for row in rows))


def table(rows: list[FidelityRow]) -> str:
    """Markdown: a line per row."""
    names = list(rows[0].shares)
    header = ["run", "sampled with", "evaluations", "n", "FD", *(f"{name} right" for name in names)]
    body = [
        [
            row.run,
            row.setting.label() if row.setting else "",
            f"{row.nfe:g}" if row.nfe else "",
            str(row.n),
            "" if row.fd is None else f"{row.fd:.2f} ± {row.fd_std:.2f}",
            *(f"{100 * row.shares[name]:.1f} %" for name in names),
        ]
        for row in rows
    ]
    return markdown_table(header, body)


def plot(rows: list[FidelityRow], file: Path) -> list[Path]:
    """Distance, and the shares that are right, against the guidance scale; dashed: real images."""
    plt = pyplot()
    real, made = rows[0], sorted(rows[1:], key=lambda row: row.setting.guidance_scale)
    scales = [row.setting.guidance_scale for row in made]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    left.errorbar(scales, [r.fd for r in made], [r.fd_std for r in made], marker="o", color="k")
    left.set(xlabel="guidance scale", ylabel=f"FD ({real.extractor})", ylim=(0, None))
    for number, name in enumerate(real.shares):
        line = right.plot(scales, [row.shares[name] for row in made], marker="o", label=name)
        right.axhline(real.shares[name], color=line[0].get_color(), linestyle="--", linewidth=1)
    right.set(xlabel="guidance scale", ylabel="samples as the caption says", ylim=(0, 1.02))
    right.legend(frameon=False)
    one = made[0]
    figure.suptitle(f"{one.dataset}: {one.run}, {one.train_images:,} training images seen")
    how = f"{one.setting.sampler}, {one.setting.steps} steps"
    figure.supxlabel(f"n = {one.n} of held-out captions, {how}; dashed: real images", **SMALL)
    return save(figure, file, vector=False)


def grid(
    run: Run, data: ImageData, settings: list[Setting], count: int, file: Path, seed: int = 0
) -> list[Path]:
    """Samples of `count` held-out captions, spread over them: a line per caption with the real
    image first, then a sample per setting, all of the same noise."""
    place, plt = _places(run, data), pyplot()
    numbers = torch.linspace(0, len(place) - 1, count).round().long()
    columns = [data.images[place[numbers]]]
    columns += [sample_images(run.model, setting, numbers, seed) for setting in settings]
    titles = ["real", *(f"guidance {s.guidance_scale:g}" for s in settings)]
    figure, axes = plt.subplots(
        count, len(columns), figsize=(3.4 + 0.9 * len(columns), 0.85 * count), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for line, number in enumerate(numbers.tolist()):
        for column, images in enumerate(columns):
            panel = axes[line, column]
            panel.imshow(images[line].permute(1, 2, 0).numpy())
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            if line == 0:
                panel.set_title(titles[column], fontsize=8)
        caption = data.captions[int(place[number])]
        words = broken(caption, 30)
        axes[line, 0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize=7.5)
    return save(figure, file, vector=False)
