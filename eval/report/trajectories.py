"""Films for the report: real images walked to noise, and that same noise walked back by each
method's sampler."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.data.dataset import ImageData, to_float, to_uint8
from core.errors import UserError
from core.noise import Noise
from core.pictures import tile
from core.runs import Load, Run, sample_images
from core.sampling.denoisers import denoiser_for
from core.sampling.solvers import Progress

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


def _label(run: Run, labels: Tensor) -> Tensor | None:
    return labels if run.num_classes else None


@torch.no_grad()
def forward_film(run: Run, row: dict, images: Tensor, labels: Tensor) -> Film:
    """x_t = alpha_t x0 + sigma_t eps for FORWARD + 1 times from 0 to 1, each with the network's
    guess of x0.

    eps is the noise that the sampler starts from for the same samples, so that the way back begins
    where this ends.
    """
    device = next(run.model.parameters()).device
    rng = Noise(row["seed"], torch.arange(len(images), device=device))
    eps, x0 = rng.normal(tuple(images.shape[1:]), "prior"), to_float(images).to(device)
    label = _label(run, labels.to(device))
    denoiser = denoiser_for(
        run.model, label, run.num_classes, row["guidance_scale"], row["threshold"]
    )
    times = [k / FORWARD for k in range(FORWARD + 1)]
    states, guesses = [], []
    for t in times:
        time = torch.tensor(t, dtype=torch.float64)
        x = run.model.path.mix(x0, eps, time).float()
        states.append(to_uint8(x).cpu())
        guesses.append(states[-1] if t == 0 else to_uint8(denoiser(x, time).x0).cpu())
    return Film(torch.stack(states, 1), torch.stack(guesses, 1), times, [0] * len(times))


def backward_film(run: Run, row: dict, labels: Tensor) -> Film:
    """The sampler's own states from noise to image; beside each the guess of x0 that its next step
    is based on."""
    device = next(run.model.parameters()).device
    count = len(labels)
    shape = (run.channels, run.side, run.side)
    noise = Noise(row["seed"], torch.arange(count, device=device)).normal(shape, "prior")
    states, guesses, times = [to_uint8(noise).cpu()], [], [1.0]

    def after_step(p: Progress) -> None:
        states.append(to_uint8(p.x).cpu())
        guesses.append(to_uint8(p.x0).cpu())
        times.append(p.s)

    label = _label(run, labels)
    indices = torch.arange(count)
    options = {
        key: row[key] for key in ("sampler", "steps", "seed", "guidance_scale", "threshold", "grid")
    }
    sample_images(run, indices=indices, label=label, callback=after_step, **options)
    guesses.append(states[-1])
    last = len(states) - 1
    keep = sorted({round(k * last / min(last, MOST)) for k in range(min(last, MOST) + 1)})
    pick = [torch.stack([film[k] for k in keep], 1) for film in (states, guesses)]
    return Film(pick[0], pick[1], [times[k] for k in keep], keep)


def sheet(film: Tensor) -> Tensor:
    """[K, F, C, H, W] -> one image [C, K * H, F * W]: a row an image, a column a frame, no gaps."""
    return tile(film.flatten(0, 1), columns=film.shape[1], gap=0)


def chosen_rows(rows: list[dict], wanted: list[int]) -> list[dict]:
    """Of one series' rows those with the wanted step counts; if it has none of them, the one with
    the fewest steps."""
    found = {row["steps"]: row for row in rows if row["steps"] in wanted}
    return list(found.values()) or [min(rows, key=lambda row: row["steps"])]


def films(
    series: list[list[dict]], folder: Path, wanted: list[int], count: int, load: Load
) -> dict:
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
        UserError: no run could be loaded, or the data set is not there.
    """
    result: dict = {"sheets": {}, "films": [], "notes": []}
    loaded: dict[Path, Run] = {}
    forward: dict[tuple, Film] = {}
    examples: tuple[Tensor, Tensor] | None = None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for index, rows in enumerate(series):
        for row in chosen_rows(rows, wanted):
            try:
                run = load(
                    folder / row["run"],
                    "raw" if row["ema"] == "raw" else "ema",
                    device,
                    row["steps"],
                )
            except UserError as error:
                _note(result, str(error))
                break
            run = loaded.setdefault(run.weights_file, run)
            if run.data is None:
                _note(result, f"{run.folder} does not say what it was trained on and is not filmed")
                break
            if examples is None:
                data = run.data.load("train")
                examples = example_images(data, count)
                result |= {
                    "side": run.side,
                    "images": count,
                    "labels": examples[1].tolist() if data.num_classes else None,
                }
                first = run.data
            if run.data != first:
                _note(
                    result,
                    f"{run.folder} was trained on other data ({run.data.name}) and is not filmed",
                )
                break
            if run.weights_sha256 != row["weights_sha256"]:
                _note(result, f"the weights in {run.folder} are not those that were measured")
            key = (run.weights_file, row["guidance_scale"], row["threshold"], row["seed"])
            if key not in forward:
                forward[key] = forward_film(run, row, *examples)
            back = backward_film(run, row, examples[1])
            entry = {
                "series": index,
                "steps": row["steps"],
                "nfe": row["nfe"],
                "times": back.times,
                "taken": back.calls,
            }
            entry |= {"forward_times": forward[key].times, "path": str(run.spec.path)}
            entry |= {
                "forward": _store(result, forward[key].states),
                "forward_guess": _store(result, forward[key].guesses),
            }
            entry |= {
                "back": _store(result, back.states),
                "back_guess": _store(result, back.guesses),
            }
            result["films"].append(entry)
    if not result["films"]:
        raise UserError(result["notes"][0] if result["notes"] else "nothing was sampled")
    return result


def _store(result: dict, film: Tensor) -> str:
    """Keeps the sheet of a film, one only where several are the same, and returns its key."""
    image = sheet(film)
    for key, kept in result["sheets"].items():
        if kept.shape == image.shape and torch.equal(kept, image):
            return key
    key = f"sheet{len(result['sheets'])}"
    result["sheets"][key] = image
    return key


def _note(result: dict, note: str) -> None:
    if note not in result["notes"]:
        result["notes"].append(note)
        print(f"warning: {note}", file=sys.stderr)
