"""Films for the report: real images walked to noise, and that same noise walked back by each
method's sampler."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.condition import UNCONDITIONED, Condition
from core.data import DataConfig, ImageData
from core.errors import UserError
from core.noise import Noise
from core.pictures import tile
from core.runs import Load, Run, weights_meant
from core.sampling.sample import denoiser_of, sample_images
from core.sampling.solvers import Progress
from eval.report.training import inside
from eval.rows import Row

FORWARD = 16  # intervals of t on the way to noise
MOST = 32  # pictures of one way back; longer ones are thinned


@dataclass(frozen=True)
class Film:
    """states, guesses: uint8 [K, F, C, H, W], image by frame; times: t of each frame; calls: steps
    taken before each frame."""

    states: Tensor
    guesses: Tensor
    times: list[float]
    calls: list[int]


def example_images(data: ImageData, count: int) -> tuple[Tensor, Tensor]:
    """`count` images (uint8) and their labels, of classes as far apart as there are."""
    picked: list[int] = []
    for k in range(count):
        of_class = (data.labels == (k * max(data.num_classes, 1)) // count).nonzero().flatten()
        free = [int(i) for i in of_class[: count + 1] if int(i) not in picked]
        picked.append(free[0] if free else k)
    return data.images[picked], data.labels[picked]


@torch.no_grad()
def forward_film(run: Run, row: Row, images: Tensor, labels: Tensor) -> Film:
    """x_t = alpha_t x0 + sigma_t eps for FORWARD + 1 times from 0 to 1, each with the network's
    guess of x0.

    eps is the noise that the sampler starts from for the same samples, so that the way back begins
    where this ends.
    """
    model, setting = run.model, row.setting
    rng = Noise(row.seed, torch.arange(len(images), device=model.device))
    eps, x0 = rng.normal(run.spec.shape, "prior"), model.codec.encode(images.to(model.device))
    condition = Condition(labels.to(model.device)) if run.spec.num_classes else UNCONDITIONED
    denoiser = denoiser_of(model, setting, condition)
    times = [k / FORWARD for k in range(FORWARD + 1)]
    states, guesses = [], []
    for t in times:
        time = torch.tensor(t, dtype=torch.float64)
        x = model.path.mix(x0, eps, time).float()
        states.append(model.codec.decode(x).cpu())
        guess = x if t == 0 else denoiser(x, time).x0
        guesses.append(model.codec.decode(guess).cpu())
    return Film(torch.stack(states, 1), torch.stack(guesses, 1), times, [0] * len(times))


def backward_film(run: Run, row: Row, labels: Tensor) -> Film:
    """The sampler's own states from noise to image; beside each the guess of x0 that its next step
    is based on."""
    model, indices = run.model, torch.arange(len(labels))
    noise = Noise(row.seed, indices.to(model.device)).normal(run.spec.shape, "prior")
    states, guesses, times = [model.codec.decode(noise).cpu()], [], [1.0]

    def after_step(p: Progress) -> None:
        states.append(model.codec.decode(p.x).cpu())
        guesses.append(model.codec.decode(p.x0).cpu())
        times.append(p.s)

    label = labels if run.spec.num_classes else None
    sample_images(model, row.setting, indices, row.seed, label, callback=after_step)
    guesses.append(states[-1])
    last = len(states) - 1
    keep = sorted({round(k * last / min(last, MOST)) for k in range(min(last, MOST) + 1)})
    pick = [torch.stack([film[k] for k in keep], 1) for film in (states, guesses)]
    return Film(pick[0], pick[1], [times[k] for k in keep], keep)


def sheet(film: Tensor) -> Tensor:
    """[K, F, C, H, W] -> one image [C, K * H, F * W]: a row an image, a column a frame, no gaps."""
    return tile(film.flatten(0, 1), columns=film.shape[1], gap=0)


def chosen_rows(rows: list[Row], wanted: list[int]) -> list[Row]:
    """Of one series' rows those with the wanted step counts; if it has none of them, the one with
    the fewest steps."""
    found = {row.steps: row for row in rows if row.steps in wanted}
    return list(found.values()) or [min(rows, key=lambda row: row.steps)]


class _Films:
    """The films made so far, with the sheets that several may share, and notes on those that could
    not be made."""

    def __init__(self, folder: Path, count: int, load: Load):
        self.folder, self.count, self.load = folder, count, load
        self.sheets: dict[str, Tensor] = {}
        self.films: list[dict] = []
        self.notes: list[str] = []
        self.about: dict = {}
        self.data: DataConfig | None = None
        self.examples: tuple[Tensor, Tensor] | None = None
        self.forward: dict[tuple, Film] = {}

    def add(self, series: int, row: Row) -> None:
        """Films a row of the series of that index.

        Raises:
            UserError: its run is not there or does not fit; or the data set is not there.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        weights = weights_meant(row.ema)
        run = self.load(inside(self.folder, row.run), weights, device, row.steps)
        images, labels = self._examples_for(run)
        if run.weights_sha256 != row.weights_sha256:
            self.note(f"the weights in {run.folder} are not those that were measured")
        setting = row.setting
        key = (run.weights_sha256, setting.guidance_words(), setting.threshold, row.seed)
        if key not in self.forward:
            self.forward[key] = forward_film(run, row, images, labels)
        out, back = self.forward[key], backward_film(run, row, labels)
        self.films.append(
            {
                "series": series,
                "steps": row.steps,
                "nfe": row.nfe,
                "times": back.times,
                "taken": back.calls,
                "forward_times": out.times,
                "path": str(run.spec.path),
                "forward": self._store(out.states),
                "forward_guess": self._store(out.guesses),
                "back": self._store(back.states),
                "back_guess": self._store(back.guesses),
            }
        )

    def _examples_for(self, run: Run) -> tuple[Tensor, Tensor]:
        """The images that are filmed, which all runs share."""
        if run.data is None:
            raise UserError(f"{run.folder} does not say what it was trained on and is not filmed")
        if self.examples is None:
            data = run.data.load("train")
            if data.density is not None:
                raise UserError("points have no film: python -m scripts.trajectories draws them")
            self.data, self.examples = run.data, example_images(data, self.count)
            labels = self.examples[1].tolist() if data.num_classes else None
            self.about = {"side": run.spec.side, "images": self.count, "labels": labels}
        if run.data != self.data:
            raise UserError(
                f"{run.folder} was trained on other data ({run.data.name}) and is not filmed"
            )
        return self.examples

    def _store(self, film: Tensor) -> str:
        """Keeps the sheet of a film, one only where several are the same, and returns its key."""
        image = sheet(film)
        for key, kept in self.sheets.items():
            if kept.shape == image.shape and torch.equal(kept, image):
                return key
        key = f"sheet{len(self.sheets)}"
        self.sheets[key] = image
        return key

    def note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
            print(f"warning: {note}", file=sys.stderr)


def films(series: list[list[Row]], folder: Path, wanted: list[int], count: int, load: Load) -> dict:
    """All that the report shows of trajectories.

    Args:
        series: the measured rows of each series; a film's "series" is the index here.
        folder: where the run folders are.
        wanted: step counts to film.
        count: images.

    Returns:
        {"side", "images", "labels" or None, "sheets": {key: uint8 [C, H, W]}, "films": [...],
        "notes": [...]}.

    Raises:
        UserError: nothing could be filmed, with the first reason.
    """
    made = _Films(folder, count, load)
    for index, rows in enumerate(series):
        for row in chosen_rows(rows, wanted):
            try:
                made.add(index, row.members[0])
            except UserError as error:
                made.note(str(error))
                break
    if not made.films:
        raise UserError(made.notes[0] if made.notes else "nothing was sampled")
    return {**made.about, "sheets": made.sheets, "films": made.films, "notes": made.notes}
