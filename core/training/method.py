"""Method: what a training method is. The trainer knows no more about it than this file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from core.autoencoders import open_autoencoder
from core.codec import Codec, Latents
from core.condition import Condition
from core.config import Strict
from core.data import Batch, DataConfig, ImageData, ImageSource
from core.data.encoded import encoded
from core.data.pairs import PairSource
from core.diffusion.parameterisations import Prediction
from core.errors import UserError
from core.model import Model, ModelConfig, ModelSpec
from core.runs import Load, Run
from core.tensors import tensors_sha256
from core.training.roles import Role

FeatureNetworks = Callable[[str, ModelSpec, torch.device], nn.Module]


class MethodConfig(Strict):
    """Base of every method's own section."""

    name: str
    """the method's name in the registry"""


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
    """What a method is loaded from besides its own section. load: finds any trained model.
    feature_network: the feature network of that name, for samples of that spec, on that device.
    cache: folder for what can be made again."""

    data: DataConfig
    model: ModelConfig | None
    seed: int
    device: torch.device
    load: Load
    feature_network: FeatureNetworks | None = None
    cache: Path = Path("runs/.cache")

    @cached_property
    def codec(self) -> Codec | None:
        """The one that the config names; None: it names none."""
        return open_autoencoder(self.data.codec, self.load) if self.data.codec else None


class Spent(NamedTuple):
    """What went into a method before training: network evaluations, seconds, and images where it
    has learned from them."""

    evals: float = 0.0
    seconds: float = 0.0
    images: int = 0


class Method(ABC):
    """One way to train a network.

    A constructor takes models; `from_config` loads them. Subclasses set

    roles: the networks that learn; roles["student"] is what is kept and sampled.
    helpers: networks that are evaluated and never trained, such as a teacher.
    changing: names of helpers that change in the course of training; checkpoints keep them.
    source: what batches are drawn from.
    teacher_name: the name of the run that supervised this one.
    started_from: hashes of the weights that the student started from, by the run's name.
    critic_features: what a critic saw, its own or one that trained the teacher: names of extractors,
        or words for what is none. A run is not measured in features that it was trained on.
    """

    Config: ClassVar[type[MethodConfig]]
    roles: dict[str, Role]
    helpers: dict[str, nn.Module] = {}
    changing: tuple[str, ...] = ()
    source: ImageSource | PairSource | None = None
    teacher_name: str | None = None
    started_from: dict[str, str] = {}
    critic_features: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def from_config(cls, config: MethodConfig, context: Context) -> Method:
        """The method with its models and data loaded; raises UserError for what does not fit."""

    @property
    def student(self) -> Model:
        return self.roles["student"].model

    def stages(self) -> list[Stage]:
        """Empty for a method that is solved in closed form."""
        return [Stage("train", 1.0)]

    def begin_stage(self, index: int) -> None:
        """Called as a stage begins, before its optimisers and averages are made anew. The averages
        of the stage before are still there."""

    def turn(self, step: int) -> tuple[str, ...]:
        """The roles that learn in optimiser step `step` of the run, in this order, on one batch."""
        return ("student",)

    @abstractmethod
    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        """One role's loss. Only that role's parameters ask for gradients."""

    def finish(self) -> None:
        """Called when the last stage is over, before its checkpoint is written: for what is
        measured of the trained networks, the averaged ones too."""

    def preview(self, model: Model, count: int) -> Tensor | None:
        """Up to `count` images, as data are stored, that show what the student, here with its
        averaged network, can do; None: samples."""
        return None

    def spent(self) -> Spent:
        """What went into the method's inputs before training: by default its stored pairs."""
        if isinstance(self.source, PairSource):
            return Spent(self.source.manifest.evals, self.source.manifest.seconds)
        return Spent()


def input_hashes(method: Method) -> dict[str, str]:
    """Hashes of all that training starts from, by what it is: a run must not go on with other
    images, pairs or teachers than it was begun with."""
    hashes = {"set of training data": method.source.sha256} if method.source else {}
    if method.student.codec.sha256:
        hashes["autoencoder"] = method.student.codec.sha256
    for name, network in method.helpers.items():
        hashes[name] = tensors_sha256(network.state_dict())
    return hashes | {f"run to start from, {name}": sha for name, sha in method.started_from.items()}


def regress(
    model: Model,
    x_t: Tensor,
    t: Tensor,
    target: Tensor,
    kind: Prediction,
    condition: Condition,
) -> Tensor:
    """The model's output at x_t [B, ...] and t [B], in terms of `kind`, minus target [B, ...]:
    float32 [B, ...]."""
    F = model.output(x_t, t, condition)
    return model.parameterisation.express(kind, F, x_t, t, model.path).float() - target.float()


def mean_square(difference: Tensor) -> Tensor:
    """[B, ...] -> [B]."""
    return difference.square().flatten(1).mean(1)


def training_data(context: Context, start: Run | None = None) -> ImageData:
    """The training images with the codec through which they are seen: that which the config names,
    or else that of the run which the student starts from. Latents are encoded, or read where they
    were before.

    Raises:
        UserError: the images do not fit the codec, or the config names another codec than the
            run's.
    """
    data, named = context.data.load(), context.codec
    codec = named or (start.model.codec if start else data.codec)
    if start is not None and named is not None and named.sha256 != start.model.codec.sha256:
        raise UserError(
            f"data.codec={context.data.codec} is not what {start.folder} was trained in: remove "
            "data.codec, since a student has its teacher's"
        )
    if not isinstance(codec, Latents):
        return data
    if data.codec.stored != codec.stored:
        raise UserError(f"data '{data.name}' is of points, which no autoencoder encodes")
    codec.spec.shape(data.channels, data.side)  # refused before anything is encoded
    content = sha256(f"{data.sha256} {data.flip} {codec.sha256}".encode()).hexdigest()
    file = context.cache / "latents" / f"{data.name}-{data.split}-{content[:24]}.safetensors"
    made = encoded(data.images, data.flip, codec, file, context.device)
    return replace(data, codec=codec, encoded=made)


def images_and_spec(context: Context, label_dropout: float = 0.0) -> tuple[ImageData, ModelSpec]:
    """The training images, as the network sees them, and the model that config and data together
    describe. label_dropout: share of labels and captions that the method will replace by null."""
    data, model = training_data(context), context.model or ModelConfig()
    spec = ModelSpec(
        **{name: getattr(model, name) for name in ModelConfig.model_fields},
        channels=data.channels,
        side=data.side,
        num_classes=data.num_classes if model.network.conditional else 0,
        codec=data.codec.spec,
        null_trained=label_dropout > 0,
    )
    return data.seen_by(spec.num_classes, spec.text), spec


def new_model(spec: ModelSpec, context: Context) -> Model:
    """A model with weights initialised from the run's seed."""
    torch.manual_seed(context.seed)
    return spec.build(context.codec).to(context.device)


def drop_labels(batch: Batch, probability: float, null: int) -> Condition:
    """The batch's condition, each label and caption replaced by the null label and the null caption
    with that probability (Ho and Salimans 2022, alg. 1)."""
    if batch.condition.tells(null) is None or probability == 0:
        return batch.condition
    return batch.condition.without_label(null, batch.rng.uniform("label-dropout") < probability)


def noise_of(batch: Batch) -> Tensor:
    """The noise coupled to x0 [B, ...]: stored with it, or independent."""
    if batch.eps is not None:
        return batch.eps
    return batch.rng.normal(tuple(batch.x0.shape[1:]), "eps")
