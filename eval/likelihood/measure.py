"""Measures the densities of a run, and how well they and other scores tell outliers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.condition import UNCONDITIONED, Condition
from core.config import Strict
from core.data.dataset import ImageData
from core.errors import UserError
from core.files import check_place, write_text
from core.noise import Noise
from core.runs import Run
from core.setting import Setting
from eval.likelihood.bits import bits_per_dimension, dequantised
from eval.likelihood.bound import Bound, variational_bound
from eval.likelihood.config import LikelihoodConfig
from eval.likelihood.flow import check_flow, log_density
from eval.likelihood.outliers import auroc, sets
from eval.likelihood.scores import eps_errors, from_half_noise, level_times, score_norms, unusual
from eval.likelihood.values import Values, kept_values
from eval.sweep.machine import commit, device_words

FLOW, BOUND = "probability flow", "variational bound"
PARTS = tuple(f"{BOUND}: {part}" for part in Bound._fields)
NORM, USUAL = "norm of the score", "usual norms"
ERROR, BACK = "error of eps", "back from half noise"


class Measured(Strict):
    """One line of likelihood.jsonl: a quantity of the images of a set."""

    dataset: str
    run: str
    method: str
    quantity: str
    images: str
    """the split, or what was done to it"""
    mean: float
    std_error: float
    """of the mean over images, with all that is random in the quantity"""
    trace_error: float | None
    """of one image's density by Hutchinson's probes, the root mean square; null: exact, or unknown
    of a single probe"""
    auroc: float | None
    """of telling these images from the split by the quantity, larger for outliers; null: they are
    the split"""
    n: int
    nfe: float
    """forward passes of the network per image, counted"""
    evals: float
    """their price, backward passes included"""
    seconds_per_image: float
    protocol: dict[str, Any]
    device: str
    weights_sha256: str
    ema: str
    commit: str | None


class Scored(NamedTuple):
    """A quantity [N] of the images of a set."""

    quantity: str
    images: str
    values: Tensor
    row: Measured


def _condition(config: LikelihoodConfig, run: Run, labels: Tensor) -> Condition:
    if not run.spec.num_classes or config.label == "null":
        return UNCONDITIONED
    return Condition(label=labels.to(run.model.device))


def check(config: LikelihoodConfig, run: Run) -> ImageData:
    """The images to measure; raises UserError where the run and the config do not go together."""
    check_flow(run.model)
    if run.spec.codec_words is not None:
        raise UserError(
            f"{run.folder} is a model of {run.spec.codec_words}, whose density is not that of images: "
            "take a model on pixels"
        )
    if run.data is None:
        raise UserError(f"{run.folder} does not say which data it was trained on")
    if config.label == "null" and run.spec.num_classes and run.spec.null_trained is False:
        raise UserError(
            "label=null, but this model never learned its null label: give label=own, or train with "
            "method.label_dropout above 0"
        )
    if config.outliers and config.label == "own" and run.spec.num_classes:
        raise UserError("outliers=true with label=own: strangers have no class; give label=null")
    data = run.data.load(config.split)
    if len(data) < 2:
        raise UserError(
            f"data '{data.name}': its {data.split} split is too small: {len(data)} images, and an "
            "error bar needs at least 2: add images, or give split=train"
        )
    return data


class _Measurement:
    def __init__(self, config: LikelihoodConfig, run: Run):
        self.config, self.run, self.model = config, run, run.model
        self.data = check(config, run)
        self.times = level_times(run.model, config.levels)
        self.own = Setting(sampler="unipc", steps=config.back_steps)

    def flow(self, images: Tensor, labels: Tensor, rng: Noise) -> dict[str, Tensor]:
        model, how = self.model, self.config.density
        x = dequantised(model.codec, images, rng)
        p = log_density(model, x, how, rng, _condition(self.config, self.run, labels))
        D = x[0].numel()
        error = x.new_full((len(x),), torch.nan) if p.error is None else p.error
        bits = bits_per_dimension(p.value, D, model.codec)
        return {FLOW: bits, "trace": error / D / torch.log(torch.tensor(2.0))}

    def bound(self, images: Tensor, labels: Tensor, rng: Noise) -> dict[str, Tensor]:
        condition = _condition(self.config, self.run, labels)
        bound = variational_bound(self.model, images, self.config.bound, rng, condition)
        per_bit = math.prod(self.model.spec.shape) * torch.log(torch.tensor(2.0)).double()
        parts = zip((BOUND, *PARTS), (bound.total, *bound), strict=True)
        return {name: part.cpu() / per_bit for name, part in parts}

    def scores(self, images: Tensor, labels: Tensor, rng: Noise) -> dict[str, Tensor]:
        model = self.model
        condition = _condition(self.config, self.run, labels)
        x0 = model.codec.encode(images.to(rng.indices.device))
        back = from_half_noise(model, x0, rng, self.own, condition)
        norms = score_norms(model, x0, self.times, condition)
        return {
            NORM: norms,
            ERROR: eps_errors(model, x0, self.times, rng, condition),
            BACK: (back - x0).double().flatten(1).square().mean(1),
        }

    def ask(self, kind: str, name: str, images: Tensor, labels: Tensor) -> Values:
        config = self.config
        ask = {"density": self.flow, "bound": self.bound, "scores": self.scores}[kind]
        return kept_values(
            Path(config.out) / "values",
            f"{self.run.name} {kind} {name}",
            self.protocol(kind, name),
            self.model,
            images,
            labels,
            config.seed,
            config.batch_size,
            ask,
        )

    def protocol(self, kind: str, name: str) -> dict[str, Any]:
        """What decides the values."""
        config = self.config
        own = {
            "density": {"density": config.density.model_dump()},
            "bound": {"bound": config.bound and config.bound.model_dump()},
            "scores": {"levels": config.levels, "back_steps": config.back_steps},
        }[kind]
        return own | {
            "data_sha256": self.data.sha256,
            "split": config.split,
            "images": name,
            "n": config.n,
            "label": config.label if self.run.spec.num_classes else None,
            "seed": config.seed,
            "batch_size": config.batch_size,
            "weights_sha256": self.run.weights_sha256,
        }

    def row(self, quantity: str, name: str, kind: str, values: Tensor, cost: Values) -> Measured:
        if not bool(torch.isfinite(values).all()):
            raise UserError(
                f"{self.run.folder}: the {quantity} of {name} images is NaN or infinite; the weights "
                "have diverged, or the integration has: give a smaller density.tolerance"
            )
        trace = cost.tensors.get("trace")
        known = trace is not None and bool(torch.isfinite(trace).all())
        return Measured(
            dataset=self.data.name,
            run=self.run.name,
            method=self.run.method,
            quantity=quantity,
            images=name,
            mean=float(values.mean()),
            std_error=float(values.std() / len(values) ** 0.5),
            trace_error=float(trace.square().mean().sqrt()) if known else None,
            auroc=None,
            n=len(values),
            nfe=cost.nfe,
            evals=cost.evals,
            seconds_per_image=cost.seconds,
            protocol=self.protocol(kind, name),
            device=device_words(self.model.device),
            weights_sha256=self.run.weights_sha256,
            ema=self.run.weights,
            commit=commit(),
        )

    def all(self) -> list[Scored]:
        config, data = self.config, self.data
        n = min(config.n, len(data))
        inside = (config.split, data.images[:n], data.labels[:n])
        every = [inside]
        if config.outliers:
            other = self.run.data.load("train" if config.split == "test" else "test")
            every.append((other.split, other.images[:n], other.labels[:n]))
            every += [
                (name, images, torch.zeros(len(images), dtype=torch.int64))
                for name, images in sets(data, n, config.seed).items()
            ]
        found: list[Scored] = []

        def add(quantity: str, name: str, kind: str, values: Tensor, cost: Values) -> None:
            row = self.row(quantity, name, kind, values, cost)
            first = next((s for s in found if s.quantity == quantity), None)
            if first is not None:
                row = row.model_copy(update={"auroc": auroc(first.values, values)})
            found.append(Scored(quantity, name, values, row))

        if config.bound is not None:
            cost = self.ask("bound", *inside)
            for quantity in (BOUND, *PARTS):
                add(quantity, inside[0], "bound", cost.tensors[quantity], cost)
        for name, images, labels in every:
            cost = self.ask("density", name, images, labels)
            add(FLOW, name, "density", cost.tensors[FLOW], cost)
        if not config.outliers:
            return found
        costs = {name: self.ask("scores", name, images, labels) for name, images, labels in every}
        train = costs["train"].tensors[NORM]
        for name, cost in costs.items():
            norms = cost.tensors[NORM]
            add(NORM, name, "scores", norms.mean(1), cost)
            add(USUAL, name, "scores", unusual(norms, train), cost)
            add(ERROR, name, "scores", cost.tensors[ERROR].mean(1), cost)
            add(BACK, name, "scores", cost.tensors[BACK], cost)
        return found


def measure(config: LikelihoodConfig, run: Run) -> list[Scored]:
    """Every quantity of every set, the split's own first. Values of single images are kept in the
    folder `values` of `out`, rows in likelihood.jsonl, which is written anew.

    Raises:
        UserError: the run has no density, run and config do not go together, or what is measured
            is not finite.
    """
    check_place(Path(config.out), folder=True)
    found = _Measurement(config, run).all()
    lines = [json.dumps(scored.row.model_dump(), allow_nan=False) for scored in found]
    write_text(Path(config.out) / "likelihood.jsonl", "\n".join(lines) + "\n")
    return found
