"""Rectified flow and reflow (Liu, Gong and Liu 2023, arXiv 2209.03003), algorithm 1."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator

from core.data import Batch, ImageSource
from core.data.coupling import transported
from core.data.pairs import PairSource
from core.diffusion.losses import straight_error_scale
from core.diffusion.parameterisations import from_denoised
from core.diffusion.times import TimeConfig, make_time_sampler, time_density
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
    training_data,
)
from core.training.roles import Role


class RectifiedFlowConfig(MethodConfig):
    """The keys of rectified flow and reflow."""

    LATER = ("time_as", "transport")

    time: TimeConfig = TimeConfig()
    """how training times are drawn"""
    time_as: Literal["sampling", "weight"] = "sampling"
    """weight: times are uniform, and the error is weighted by the density of `time`"""
    label_dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of labels replaced by the null label, which classifier-free guidance needs"""
    pairs: str | None = None
    """folder of stored pairs, which makes this reflow; null: noise independent of the data"""
    init: str | None = None
    """run to start from: a flow, or a teacher that predicts v"""
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
    """min E ||(eps - x0) - u(y_w, w)||^2 on y_w = (1 - w) x0 + w eps (eq. 1; w runs from data to
    noise here, so u has the opposite sign of the paper's v). With stored pairs (eps, x0) of a flow
    or a teacher this is the k-th rectified flow.

    On the rectified path y_w is x_t and w is t. A network of another path is a rectified flow
    too, without any conversion of its weights: in y = x_t / (alpha + sigma) and w = sigma / (alpha
    + sigma) every Gaussian path is the straight one, and any prediction at (x_t, t) is a guess of
    eps - x0. So a teacher starts a flow that is, at first, the teacher's own. Times are drawn as w;
    where a path ends before pure noise they are scaled to its range.

    The network may predict v in place of u. u = (sigma - alpha) x + (alpha + sigma) v on a
    variance-preserving path, so v is u with a skip: near noise u makes the network copy its input.
    The loss is that of eps - x0 for both.

    Deviations: times are uniform in the paper; the recipes of digits and Fashion-MNIST draw them
    from the sigmoid of a normal distribution (Esser et al. 2024), and reflow's u-shaped (Lee et al.
    2024, there with LPIPS-Huber and a weight of 1 / t; here the squared error). Labels are given,
    and may be dropped. Reflow continues from the weights that made its pairs, with an optimiser of
    its own whose rate falls to 0, and sees its pairs many times (the paper has millions).

    With `transport` the noise of each image is chosen among that of its neighbours, and its class,
    so that the squared lengths of the ways are least: minibatch optimal transport (Tong et al. 2024,
    arXiv 2302.00482). Deviation: the plan of a block of fixed size and one class, and not of the
    batch, so that it depends on nothing but the block.
    """

    Config = RectifiedFlowConfig

    def __init__(
        self, config: RectifiedFlowConfig, model: Model, source: ImageSource | PairSource | None
    ):
        if model.spec.prediction not in ("u", "v"):
            raise UserError(
                f"model.prediction={model.spec.prediction}: a flow predicts u, the velocity, or v"
            )
        self.config, self.source = config, source
        self.roles = {"student": Role(model)}
        if config.transport > 1 and model.spec.text is not None:
            raise UserError(
                "method.transport exchanges noise between images, which are to keep their captions' "
                "own: set it to 1 for a network that reads captions"
            )
        weighted = config.time_as == "weight"
        self.sample_time = make_time_sampler(TimeConfig() if weighted else config.time)

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
            started_from = {run.name: run.weights_sha256}
            model = run.model.with_network(run.model.network, discrete_steps=None, sampling=None)
            model = model.train().requires_grad_(True)
            data = training_data(context, run).seen_by(model.spec.num_classes, model.spec.text)
        pairs = PairSource(config.pairs, context.seed) if config.pairs else None
        method = cls(config, model, pairs or ImageSource(data, context.seed))
        method.started_from = started_from
        if pairs:
            pairs.check_fits(model.spec)
            method.teacher_name = pairs.manifest.run_name
        return method

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        model = self.roles["student"].wrapped
        path, kind = model.path, model.spec.prediction
        drawn, label = self.sample_time(batch.rng), batch.condition.label
        eps = transported(batch.x0, noise_of(batch), self.config.transport, label)
        noisiest = path.straight(torch.ones((), dtype=torch.float64, device=drawn.device))
        t = path.from_straight(drawn * noisiest)
        error = regress(
            model,
            x_t=path.mix(batch.x0, eps, t),
            t=t,
            target=from_denoised(kind, batch.x0, eps, t, path),
            kind=kind,
            condition=drop_labels(batch, self.config.label_dropout, model.spec.num_classes),
        )
        weight = straight_error_scale(kind, t, path)
        if self.config.time_as == "weight":
            weight = weight * time_density(self.config.time, drawn)
        return Loss(mean_square(error) * weight.float(), t)
