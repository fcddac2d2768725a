"""The panels of scripts.edit: a row for each image, from what is given to what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from core.condition import UNCONDITIONED, Condition
from core.model import Model
from core.noise import Noise
from core.sampling.editing import decode, encode, inpaint, spherical, switch, vary
from core.sampling.sample import sample
from core.sampling.solvers import Progress
from core.setting import Setting

HIDDEN = {
    "left": (slice(None), slice(0, 0.5)),
    "right": (slice(None), slice(0.5, 1)),
    "top": (slice(0, 0.5), slice(None)),
    "bottom": (slice(0.5, 1), slice(None)),
    "centre": (slice(0.25, 0.75), slice(0.25, 0.75)),
}  # rows and columns, as shares of the side


class Panel(NamedTuple):
    """pictures: as data are stored, [rows, columns, C, S, S]; said: a line to print, or none."""

    pictures: Tensor
    said: str = ""


@dataclass(frozen=True)
class Desk:
    """A model, how it is sampled, and the condition and random numbers of each row. step: called
    after every interval."""

    model: Model
    setting: Setting
    rng: Noise
    label: Tensor | None
    step: Callable[[], None]

    @property
    def condition(self) -> Condition:
        return UNCONDITIONED if self.label is None else Condition(label=self.label)

    def callback(self, progress: Progress) -> None:
        self.step()

    def stored(self, *columns: Tensor) -> Tensor:
        """Columns as the network sees them, each [rows, ...], as pictures."""
        return torch.stack([self.model.codec.decode(column).cpu() for column in columns], 1)

    def seen(self, images: Tensor) -> Tensor:
        return self.model.codec.encode(images.to(self.model.device))


def encoded(desk: Desk, images: Tensor, to_label: int | None = None) -> Panel:
    """Image, the noise it is made of, what the same solver makes of that, and what it makes of it
    for another class."""
    x0 = desk.seen(images)
    noise = encode(desk.model, desk.setting, x0, desk.condition, desk.callback)
    back = decode(desk.model, desk.setting, noise, desk.condition, desk.callback)
    columns = [x0, noise / 2, back]  # of the noise two standard deviations are black to white
    if to_label is not None:
        other = Condition(label=torch.full_like(desk.label, to_label))
        columns.append(decode(desk.model, desk.setting, noise, other, desk.callback))
    pictures = desk.stored(*columns)
    gap = (pictures[:, 0].float() - pictures[:, 2].float()).square().mean().sqrt()
    spread = noise.double().std()
    return Panel(
        pictures,
        f"the way there and back: {gap:.2f} of 255 (root mean square); the noise has standard "
        f"deviation {spread:.3f}",
    )


def between(desk: Desk, count: int, images: Tensor | None = None) -> Panel:
    """From the first noise of each pair of rows to the second, by the arc between them; images:
    whose noises those are, else they are drawn."""
    if images is None:
        noise = desk.rng.normal(desk.model.spec.shape, "prior")
    else:
        noise = encode(desk.model, desk.setting, desk.seen(images), desk.condition, desk.callback)
    arc = spherical(noise[0::2], noise[1::2], torch.linspace(0, 1, count, dtype=torch.float64))
    label = None if desk.label is None else desk.label[0::2].repeat(count)
    condition = UNCONDITIONED if label is None else Condition(label=label)
    x = decode(desk.model, desk.setting, arc.flatten(0, 1), condition, desk.callback)
    made = list(x.view(count, -1, *x.shape[1:]))
    if images is not None:
        x0 = desk.seen(images)
        made = [x0[0::2], *made, x0[1::2]]
    return Panel(desk.stored(*made))


def varied(desk: Desk, images: Tensor, times: list[float]) -> Panel:
    """Image, and what is sampled from it with noise up to each of the times."""
    x0 = desk.seen(images)
    given = (desk.rng, desk.condition, desk.callback)
    made = [vary(desk.model, desk.setting, x0, t, *given) for t in times]
    return Panel(desk.stored(x0, *made))


def mask_of(hide: str, side: int) -> Tensor:
    """bool [1, side, side]: what stays known where that part is hidden."""
    known = torch.ones(1, side, side, dtype=torch.bool)

    def pixels(share: slice) -> slice:
        return slice(*(None if s is None else round(s * side) for s in (share.start, share.stop)))

    known[:, pixels(HIDDEN[hide][0]), pixels(HIDDEN[hide][1])] = False
    return known


def inpainted(
    desk: Desk, images: Tensor, hide: str, variants: int, resample: int, jump: int
) -> Panel:
    """Image, what is known of it, replacement, and several runs of RePaint."""
    x0, side = desk.seen(images), images.shape[-1]
    known = mask_of(hide, side)
    shown = torch.where(known, images, torch.full_like(images, 128))
    columns = []
    for variant in range(variants + 1):
        repeats = 1 if variant == 0 else resample
        rng, told = desk.rng.of(f"variant {variant}"), desk.condition
        args = (desk.model, desk.setting, x0, known.to(x0.device), rng, told, repeats, jump)
        columns.append(inpaint(*args, after_step=desk.step))
    made = desk.stored(*columns)
    return Panel(torch.cat([torch.stack([images, shown], 1), made], 1))


def switched(desk: Desk, then: int, times: list[float]) -> Panel:
    """The sample of the first class, those that are told the second from each of the times on, and
    that of the second."""
    second = Condition(label=torch.full_like(desk.label, then))
    made = [sample(desk.model, desk.setting, desk.rng, desk.condition, desk.callback)]
    for at in times:
        given = (desk.rng, desk.condition, second, at, desk.callback)
        made.append(switch(desk.model, desk.setting, *given))
    made.append(sample(desk.model, desk.setting, desk.rng, second, desk.callback))
    return Panel(desk.stored(*made))
