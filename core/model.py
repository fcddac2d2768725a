"""Model: a network together with its spec, which says what the network's output means.

A sampler, a student and the evaluation all ask a Model for (x0, eps), for a velocity or for a map,
and never look at the network. The spec is plain data that travels with the weights, and the only
owner of path, parameterisation, times, codec, and how the model is meant to be sampled.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn

from core.codec import CODECS, Codec, CodecSpec, LatentSpec, seen_shape
from core.condition import UNCONDITIONED, Condition
from core.config import Strict
from core.diffusion.parameterisations import (
    ConsistencyFunction,
    Denoised,
    Parameterisation,
    Prediction,
    PredictionConfig,
    from_denoised,
    make_parameterisation,
    refuse_zero,
)
from core.diffusion.paths import PATHS, Path, expand, make_path
from core.diffusion.tables import BetaTable
from core.errors import UserError
from core.networks import NetworkConfig
from core.networks.text import TextConfig
from core.networks.unet import UNetConfig
from core.setting import Setting, Steps


def _kind_of_path(value: Any) -> str:
    return "table" if isinstance(value, (dict, BetaTable)) else "name"


PathConfig = Annotated[
    Annotated[Literal[tuple(PATHS)], Tag("name")] | Annotated[BetaTable, Tag("table")],
    Discriminator(_kind_of_path),
]


class ModelConfig(Strict):
    """What a config says of a model; the data decide the rest."""

    network: NetworkConfig = UNetConfig()
    """the network's kind and sizes"""
    path: PathConfig = "vp-cosine"
    """alpha and sigma over time: a name, or a table of betas"""
    prediction: Prediction | Literal["mean-velocity"] = "v"
    """what the network's output means"""
    discrete_steps: Steps | None = None
    """train at the times k / discrete_steps only; null: at all times"""
    autocast: bool = False
    """run the network in bfloat16 where PyTorch deems it safe"""


class ModelSpec(ModelConfig):
    """All that a Model is but its weights."""

    prediction: PredictionConfig = "v"
    channels: int = Field(ge=1, le=4096)
    side: int = Field(ge=1, le=4096)
    num_classes: int = Field(ge=0, le=1_000_000)
    codec: CodecSpec = "pixels"
    sampling: Setting | None = None
    """how it is meant to be sampled; null: as its parameterisation suggests"""
    null_trained: bool | None = None
    """whether the null label or caption was trained, which guidance needs; null: not known"""

    @property
    def setting(self) -> Setting:
        """How the model is sampled where nothing else is said."""
        if self.sampling is not None:
            return self.sampling
        steps = 8 if self.discrete_steps is None else min(8, self.discrete_steps)
        return Setting(sampler=make_parameterisation(self.prediction).sampler, steps=steps)

    @property
    def guidance(self) -> tuple[float, float] | None:
        """Range of the weights of guidance that the network is told, and so needs no second
        evaluation for."""
        return getattr(self.network, "guidance", None)

    @property
    def text(self) -> TextConfig | None:
        """How the network reads captions; None: it reads none."""
        return getattr(self.network, "text", None)

    @property
    def told(self) -> bool:
        """Whether the network is told what is wanted: a label, a caption, or both."""
        return bool(self.num_classes) or self.text is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, as the network sees it."""
        return seen_shape(self.codec, self.channels, self.side)

    @property
    def codec_words(self) -> str | None:
        """What rows call the latents that the network sees; None where it sees the data."""
        latent = isinstance(self.codec, LatentSpec)
        return self.codec.words(self.channels, self.side) if latent else None

    @property
    def codec_sha256(self) -> str | None:
        """Of the weights of the codec; None where it has none."""
        return getattr(self.codec, "sha256", None)

    def build(self, codec: Codec | None = None) -> Model:
        """A freshly initialised Model, with the codec that the spec speaks of, where that has
        weights.

        Raises:
            UserError: the images do not fit the network, or it is told a second time that the
                prediction has not, or the reverse.
        """
        if self.network.second_time != make_parameterisation(self.prediction).second_time:
            raise UserError(
                "model.prediction=mean-velocity and model.network.second_time=true belong together: "
                f"they are {self.prediction} and {str(self.network.second_time).lower()}"
            )
        channels, side = self.shape[:2]
        return Model(self.network.build(channels, side, self.num_classes), self, codec)


def upgraded(spec: dict) -> dict:
    """A spec as earlier versions wrote it, in today's keys: they named the boundary of a
    consistency function beside the prediction v."""
    if not isinstance(spec, dict):
        return spec
    spec = dict(spec)
    t_min, sigma_data = spec.pop("boundary_t_min", None), spec.pop("boundary_sigma_data", 1.0)
    if t_min is not None:
        spec["prediction"] = {"name": "consistency", "t_min": t_min, "sigma_data": sigma_data}
    return spec


class Model(nn.Module):
    """network + spec, and the codec where that has weights. Shapes: x [B, *spec.shape]; times t
    and s are [] or [B], float64."""

    def __init__(self, network: nn.Module, spec: ModelSpec, codec: Codec | None = None):
        super().__init__()
        self.network, self.spec = network, spec
        self.path: Path = make_path(spec.path) if isinstance(spec.path, str) else spec.path.build()
        self.parameterisation: Parameterisation = make_parameterisation(spec.prediction)
        if codec is None and spec.codec in CODECS:
            codec = CODECS[spec.codec]
        if codec is None or codec.spec != spec.codec:
            raise ValueError(f"a model with the codec {spec.codec} is made with that codec")
        self.codec: Codec = codec

    def with_network(self, network: nn.Module, /, **changes: Any) -> Model:
        """The same model of another network, a wrapped, an averaged or a copied one, with these
        values of its spec changed."""
        spec = self.spec.model_copy(update=changes) if changes else self.spec
        return Model(network, spec, self.codec)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def output(
        self,
        x: Tensor,
        t: Tensor,
        condition: Condition = UNCONDITIONED,
        s: Tensor | None = None,
        autocast: bool | None = None,
    ) -> Tensor:
        """The raw network output F [B, ...] in x's dtype.

        Args:
            s: where the flow is to arrive, for parameterisations with a second time; None: s = t.
            autocast: the spec's own if None.
        """
        return self.ask(x, t, condition, s, autocast).to(x.dtype)

    def features(self, x: Tensor, t: Tensor, condition: Condition = UNCONDITIONED) -> Tensor:
        """What the network's encoder sees of x at t, [B, C, h, w] float32, counted as an evaluation
        though it is about half of one; raises UserError for a network that shows none."""
        self.check_encoder()
        return self.ask(x, t, condition, features=True).float()

    def check_encoder(self) -> None:
        """Raises UserError for a network that cannot show what its encoder sees."""
        if not hasattr(self.network, "encode"):
            raise UserError(
                f"network '{self.spec.network.name}' does not show what its encoder sees, which a "
                "critic on its features needs: take a U-Net, DiT or perceptron of this repository, or "
                "switch that critic off"
            )

    def ask(
        self,
        x: Tensor,
        t: Tensor,
        condition: Condition,
        s: Tensor | None = None,
        autocast: bool | None = None,
        **more: bool,
    ) -> Any:
        """What the network returns; more: what else it is asked for."""
        parameter = next(self.network.parameters(), None)
        dtype = parameter.dtype if parameter is not None else x.dtype
        if t.ndim == 0 and t.device.type == "cpu":  # as a number: a GPU does not wait for it
            t = torch.full((len(x),), t.item(), device=x.device, dtype=dtype)
        t = t.to(device=x.device, dtype=dtype).expand(len(x))
        r = None
        if self.parameterisation.second_time:
            # The network is told the length of the way: (t, t - s) served best in Geng et al. 2025.
            r = torch.zeros_like(t) if s is None else t - s.to(t).expand(len(x))
        enabled = self.spec.autocast if autocast is None else autocast
        with torch.autocast(x.device.type, torch.bfloat16, enabled=enabled):
            return self.network(x.to(dtype), t, r, **condition.inputs(), **more)

    def read(self, F: Tensor, x: Tensor, t: Tensor) -> Denoised:
        """What output F means at x and t."""
        return self.parameterisation.denoised(F, x, t, self.path)

    def denoised(self, x: Tensor, t: Tensor, condition: Condition = UNCONDITIONED) -> Denoised:
        """The guess of (x0, eps) behind x at t."""
        return self.read(self.output(x, t, condition), x, t)

    def x0(self, x: Tensor, t: Tensor, condition: Condition = UNCONDITIONED) -> Tensor:
        """The denoiser E[x0 | x_t] of a teacher, or the consistency function of a student."""
        return self.parameterisation.x0(self.output(x, t, condition), x, t, self.path)

    def eps(self, x: Tensor, t: Tensor, condition: Condition = UNCONDITIONED) -> Tensor:
        return self.denoised(x, t, condition).eps

    def score(self, x: Tensor, t: Tensor, condition: Condition = UNCONDITIONED) -> Tensor:
        """The score, the gradient of log p_t at x: -eps / sigma_t (Song et al. 2021, sec. 3.3, by
        Tweedie's formula), [B, ...]. Of teachers and flows: the x0 of a consistency function is
        where its flow ends and no mean over data, so it has no score.

        Raises:
            SingularTime: at clean data, where sigma is 0. UserError: a consistency function.
        """
        self.check_denoises()
        sigma = self.path.sigma(t)
        refuse_zero(sigma, "the score of data without noise is not known (sigma is 0)")
        return -self.eps(x, t, condition) / expand(sigma, x)

    def check_denoises(self) -> None:
        """Raises UserError for a model whose guess of x0 is not the mean E[x0 | x_t]."""
        if isinstance(self.spec.prediction, ConsistencyFunction):
            raise UserError(
                f"a {self.spec.prediction} guesses where its flow ends and not the mean of the data "
                "behind x_t, so it has no score and no density: take its teacher"
            )

    def u(self, x: Tensor, t: Tensor, condition: Condition = UNCONDITIONED) -> Tensor:
        """The velocity dx/dt of the probability-flow ODE."""
        F = self.output(x, t, condition)
        if self.spec.prediction in ("u", "mean-velocity"):
            return F
        return from_denoised("u", *self.read(F, x, t), t, self.path)

    def map(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition = UNCONDITIONED) -> Tensor:
        """From x at t to s <= t in one evaluation."""
        F = self.output(x, t, condition, s)
        return self.parameterisation.map(F, x, t, s, self.path)
