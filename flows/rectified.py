"""Rectified flow and reflow (Liu, Gong and Liu 2023, arXiv 2209.03003), algorithm 1."""

from __future__ import annotations

from pydantic import Field, model_validator

from core.data import Batch, ImageSource
from core.data.coupling import transported
from core.data.pairs import PairSource
from core.diffusion.parameterisations import from_denoised
from core.diffusion.times import TimeConfig, make_time_sampler
from core.errors import UserError
from core.model import Model
from core.training.method import (
    Context,
    Loss,
    Method,
    MethodConfig,
    Progress,
    drop_labels,
    images_and_spec,
    mean_square,
    new_model,
    noise_of,
    regress,
)
from core.training.roles import Role


class RectifiedFlowConfig(MethodConfig):
    """The keys of rectified flow and reflow."""

    LATER = ("transport",)

    time: TimeConfig = TimeConfig()
    """how training times are drawn"""
    label_dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of labels replaced by the null label, which classifier-free guidance needs"""
    pairs: str | None = None
    """folder of stored pairs, which makes this reflow; null: noise independent of the data"""
    init: str | None = None
    """run of the same network to start from"""
    transport: int = Field(default=1, ge=1, le=100_000)
    """consecutive images that are given each other's noise by optimal transport; 1: their own"""

    @model_validator(mode="after")
    def _one_coupling(self) -> RectifiedFlowConfig:
        if self.transport > 1 and self.pairs is not None:
            raise ValueError(
                f"transport={self.transport} and pairs: stored pairs are a coupling; leave one out"
            )
        return self


class RectifiedFlow(Method):
    """min E ||(eps - x0) - u(x_t, t)||^2 on x_t = (1 - t) x0 + t eps (eq. 1; t runs from data to
    noise here, so u has the opposite sign of the paper's v). With stored pairs (eps, x0) of a flow
    or a teacher this is the k-th rectified flow.

    With `transport` the noise of each image is chosen among that of its neighbours, and its class,
    so that the squared lengths of the ways are least: minibatch optimal transport (Tong et al. 2024,
    arXiv 2302.00482). Deviation: the plan of a block of fixed size and one class, and not of the
    batch, so that it depends on nothing but the block.

    On a path other than the rectified one the target is that path's own dx/dt: flow matching
    (Lipman et al. 2023).
    """

    Config = RectifiedFlowConfig

    def __init__(
        self, config: RectifiedFlowConfig, model: Model, source: ImageSource | PairSource | None
    ):
        if model.spec.prediction != "u":
            raise UserError(
                f"model.prediction={model.spec.prediction}: a flow predicts u, the velocity"
            )
        self.config, self.source = config, source
        self.roles = {"student": Role(model)}
        self.sample_time = make_time_sampler(config.time)

    @classmethod
    def from_config(cls, config: RectifiedFlowConfig, context: Context) -> RectifiedFlow:
        started_from = {}
        if config.init is None:
            data, spec = images_and_spec(context, config.label_dropout)
            model = new_model(spec, context)
        else:
            if context.model is not None:
                raise UserError(
                    "method.init brings its own network: remove the section 'model' from the config"
                )
            run = context.load(config.init, "ema", context.device)
            model, started_from = run.model, {run.name: run.weights_sha256}
            model.train().requires_grad_(True)
            data = context.data.load().seen_by(model.spec.num_classes)
        pairs = PairSource(config.pairs, context.seed) if config.pairs else None
        method = cls(config, model, pairs or ImageSource(data, context.seed))
        method.started_from = started_from
        if pairs:
            pairs.check_fits(model.spec)
            method.teacher_name = pairs.manifest.run_name
        return method

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        model = self.roles["student"].wrapped
        t = self.sample_time(batch.rng)
        label = batch.condition.label
        eps = transported(batch.x0, noise_of(batch), self.config.transport, label)
        error = regress(
            model,
            x_t=model.path.mix(batch.x0, eps, t),
            t=t,
            target=from_denoised("u", batch.x0, eps, t, model.path),
            kind="u",
            condition=drop_labels(batch, self.config.label_dropout, model.spec.num_classes),
        )
        return Loss(mean_square(error), t)
