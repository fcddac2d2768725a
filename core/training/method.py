"""What a training method is: the network it trains, and a loss. The trainer knows no more about it
than this file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from core.config import Strict
from core.data import Batch, DataConfig, ImageData, ImageSource
from core.diffusion.predictions import Prediction, convert
from core.model import Model
from core.model_spec import ModelConfig, ModelSpec, build_model
from core.runs import Load


class MethodConfig(Strict):
    """Base of every method's own section; `name` is the method's name in the registry."""

    name: str


class Stage(NamedTuple):
    """A stretch of training with a learning-rate schedule of its own.

    share: of the budget, relative to the other stages. steps: if given, the stage's result is kept
    as the model to be sampled in that many steps, whatever later stages make of the network.
    """

    name: str
    share: float
    steps: int | None = None


class Progress(NamedTuple):
    """images: seen since the run began; stage: index; fraction: of the stage's budget that is
    spent, in 0..1."""

    images: int
    stage: int
    fraction: float


class Loss(NamedTuple):
    """per_sample [B] float32, whose mean is minimised, and the times t [B] it was taken at, for the
    log by noise level."""

    per_sample: Tensor
    t: Tensor


@dataclass(frozen=True)
class Context:
    """What a method is built from besides its own config."""

    data: DataConfig
    model: ModelConfig | None
    seed: int
    device: torch.device
    load: Load


class Spent(NamedTuple):
    """What went into a method before training: network evaluations, seconds, and images where it
    has learned from them."""

    evals: float = 0.0
    seconds: float = 0.0
    images: int = 0


class Method(ABC):
    """One way to train one network.

    Subclasses set `model` (the Model whose network is trained), `spec` (what it is made of) and
    `source` (what batches are drawn from) in their constructor. A method that trains other networks
    besides, such as a critic, steps their optimisers itself, within `loss`; it names the networks
    in `frozen` and keeps the optimisers in `state`.
    """

    Config: ClassVar[type[MethodConfig]]
    teacher_name: str | None = None  # the name of the run that supervised this one
    model: Model
    spec: ModelSpec
    source: ImageSource
    unseen_evals: float = 0.0  # network evaluations that forward hooks do not see; the trainer reads it and sets it to 0

    def __init__(self, config: MethodConfig, context: Context):
        self.config, self.context = config, context

    def stages(self) -> list[Stage]:
        """Empty for a method that its constructor solves in closed form."""
        return [Stage("train", 1.0)]

    def begin_stage(self, index: int, average: nn.Module) -> None:
        """Called as a stage begins, with the network's moving average over the stage before (its
        start, for the first)."""

    @abstractmethod
    def loss(self, batch: Batch, progress: Progress) -> Loss: ...

    def after_step(self, progress: Progress, batch_size: int) -> None:
        """Called after every optimiser step; batch_size counts all processes."""

    def frozen(self) -> dict[str, nn.Module]:
        """Networks that are evaluated but not trained by the optimiser, and which a resumed run
        cannot derive anew."""
        return {}

    def state(self) -> dict:
        """What a resumed run needs besides networks: tensors and plain values, as in an optimiser's
        state_dict."""
        return {}

    def load_state(self, state: dict) -> None:
        """Takes up what `state` gave."""

    def networks(self) -> list[nn.Module]:
        """All networks whose evaluations are part of the price of training."""
        return [self.model.network, *self.frozen().values()]

    def spent(self) -> Spent:
        """What went into the method's inputs before training, such as stored pairs."""
        return Spent()


class Regression(NamedTuple):
    """Bring the model's output at (x_t [B, ...], t [B], r [B] or None) to `target`, both expressed
    as `kind`, by `weight` [B]."""

    x_t: Tensor
    t: Tensor
    target: Tensor
    kind: Prediction
    weight: Tensor
    label: Tensor | None = None
    r: Tensor | None = None


class RegressionMethod(Method):
    """A method that says what to regress on; the loss itself is written once, here."""

    @abstractmethod
    def target(self, batch: Batch, progress: Progress) -> Regression: ...

    def distance(self, difference: Tensor) -> Tensor:
        """[B, ...] -> [B]; the mean square unless a method overrides it."""
        return difference.square().flatten(1).mean(1)

    def loss(self, batch: Batch, progress: Progress) -> Loss:
        g = self.target(batch, progress)
        model = self.model
        F = model.output(g.x_t, g.t, g.label, g.r)
        if model.boundary is not None:
            guess = model.boundary.x0(F, g.x_t, g.t, model.path)
        else:
            guess = convert(model.prediction, g.kind, F, g.x_t, g.t, model.path)
        return Loss(self.distance(guess.float() - g.target.float()) * g.weight.float(), g.t)


def images_and_spec(context: Context) -> tuple[ImageData, ModelSpec]:
    """The training images, as the network sees them, and the model that config and data together
    describe."""
    data = context.data.load()
    model = context.model or ModelConfig()
    spec = ModelSpec(
        **{name: getattr(model, name) for name in ModelConfig.model_fields},
        channels=data.channels,
        side=data.side,
        num_classes=data.num_classes if model.network.conditional else 0,
    )
    return data.seen_by(spec.num_classes), spec


def new_model(spec: ModelSpec, context: Context) -> Model:
    """A model with weights initialised from the run's seed."""
    torch.manual_seed(context.seed)
    return build_model(spec).to(context.device)


def drop_labels(batch: Batch, probability: float, null: int) -> Tensor | None:
    """The batch's labels, each replaced by the null label with that probability (Ho and Salimans
    2022, alg. 1)."""
    if batch.label is None or probability == 0:
        return batch.label
    dropped = batch.rng.uniform("label-dropout") < probability
    return torch.where(dropped, torch.full_like(batch.label, null), batch.label)


def noise_of(batch: Batch) -> Tensor:
    """The noise coupled to x0 [B, ...]: stored with it, or independent."""
    if batch.eps is not None:
        return batch.eps
    return batch.rng.normal(tuple(batch.x0.shape[1:]), "eps")
