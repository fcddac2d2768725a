"""The table and the picture of a measurement of densities."""

from __future__ import annotations

from pathlib import Path

import torch

from eval.curves.canvas import pyplot, save
from eval.likelihood.measure import BACK, BOUND, ERROR, FLOW, NORM, USUAL, Scored
from eval.text import markdown_table, number

DRAWN = (FLOW, NORM, USUAL, ERROR, BACK)
TITLES = {
    FLOW: "bits per dimension, by the flow",
    NORM: "mean norm of the score",
    USUAL: "distance from usual norms",
    ERROR: "mean error of eps",
    BACK: "error of the way back from half noise",
}
BINS = 40
COLORS = ("#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#999933", "#882255")


def table(found: list[Scored]) -> str:
    """In Markdown: the bits of the split, and where there are other images, a line for each with
    its bits and the AUROC of every quantity."""
    own = found[0].images
    lines = [
        (s.quantity, number(s.row.mean, s.row.std_error), f"{s.row.n}", f"{s.row.nfe:.0f}")
        for s in found
        if s.images == own and s.quantity.startswith((FLOW, BOUND))
    ]
    first = markdown_table((f"{own} images", "bits per dimension", "n", "NFE"), lines)
    others = list(dict.fromkeys(s.images for s in found if s.images != own))
    if not others:
        return first
    by = {(s.quantity, s.images): s.row for s in found}
    body = [
        (name, number(by[FLOW, name].mean, by[FLOW, name].std_error),
         *(f"{by[quantity, name].auroc:.3f}" for quantity in DRAWN))
        for name in others
    ]  # fmt: skip
    header = ("images", "bits per dimension", *(f"AUROC: {quantity}" for quantity in DRAWN))
    return first + "\n\n" + markdown_table(header, body)


def plot(found: list[Scored], file: Path) -> list[Path]:
    """A panel for each quantity, in it a histogram of each set above the next, the split's own in
    grey and at the top, with the AUROC of telling the others from it."""
    drawn = [q for q in DRAWN if any(s.quantity == q for s in found)]
    names = list(dict.fromkeys(s.images for s in found if s.quantity == drawn[0]))
    plt = pyplot()
    width, height = 1.2 + 2.9 * len(drawn), 1.3 + 0.5 * len(names)
    figure, axes = plt.subplots(
        1, len(drawn), figsize=(width, height), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, quantity in zip(axes[0], drawn):
        sets = {s.images: s for s in found if s.quantity == quantity}
        every = torch.cat([s.values for s in sets.values()]).double()
        low, high = (float(every.quantile(q)) for q in (0.002, 0.998))
        edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
        for i, name in enumerate(names):
            counts = torch.histogram(sets[name].values.double().clamp(low, high), edges).hist
            tops = (0.9 * counts / counts.max() - i).tolist()
            color = COLORS[(i - 1) % len(COLORS)] if i else "#999999"
            axis.stairs(tops, edges.tolist(), baseline=-i, fill=True, color=color)
            if (found_auroc := sets[name].row.auroc) is not None:
                words = f"{found_auroc:.2f}"
                axis.text(1.0, 0.35 - i, words, transform=axis.get_yaxis_transform(), fontsize=9)
        axis.set_xlabel(TITLES[quantity])
        axis.set_yticks([0.3 - i for i in range(len(names))], names)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    row = found[0].row
    title = f"{row.dataset}, {row.run}: {row.n} images of each set"
    figure.suptitle(title + (", AUROC at the right" if len(names) > 1 else ""), fontsize=12)
    return save(figure, file, vector=False)
