"""DDPM training (Ho, Jain and Abbeel 2020, arXiv 2006.11239, alg. 1), in discrete or continuous
time, for any path and prediction."""

from __future__ import annotations

from pydantic import Field

from core.data import Batch, ImageSource
from core.diffusion.losses import Weighting, loss_weight
from core.diffusion.parameterisations import PREDICTIONS, from_denoised
from core.diffusion.times import TimeConfig, make_time_sampler, on_grid
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


class DDPMConfig(MethodConfig):
    """The teacher's keys."""

    weight: Weighting = "simple"
    """weight of the squared error over noise levels (core/diffusion/losses.py)"""
    gamma: float = Field(default=5.0, gt=0, le=1e9)
    """largest weight of min-snr"""
    label_dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of labels replaced by the null label, which classifier-free guidance needs"""
    time: TimeConfig = TimeConfig()
    """training times of models in continuous time (model.discrete_steps = null)"""


class DDPM(Method):
    """The teacher. With prediction "eps" and weight "simple" this is L_simple (Ho et al. 2020,
    eq. 14).

    Deviation: the other predictions take "simple" as the unweighted error of their own target, as
    is usual since Salimans and Ho 2022, and not as the eps error it would be by the letter of Ho et
    al.
    """

    Config = DDPMConfig

    def __init__(self, config: DDPMConfig, model: Model, source: ImageSource | None):
        if config.weight == "truncated-snr" and model.spec.prediction == "eps":
            raise UserError(
                "method.weight=truncated-snr is unbounded for model.prediction=eps: "
                "use prediction v or x0"
            )
        if model.spec.prediction not in PREDICTIONS:
            raise UserError(
                f"model.prediction={model.spec.prediction}: a teacher predicts one of "
                f"{', '.join(PREDICTIONS)}"
            )
        self.config, self.source = config, source
        self.roles = {"student": Role(model)}
        steps = model.spec.discrete_steps
        self.sample_time = on_grid(steps) if steps else make_time_sampler(config.time)

    @classmethod
    def from_config(cls, config: DDPMConfig, context: Context) -> DDPM:
        data, spec = images_and_spec(context, config.label_dropout)
        return cls(config, new_model(spec, context), ImageSource(data, context.seed))

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        model = self.roles["student"].wrapped
        path, kind = model.path, model.spec.prediction
        t, eps = self.sample_time(batch.rng), noise_of(batch)
        error = regress(
            model,
            x_t=path.mix(batch.x0, eps, t),
            t=t,
            target=from_denoised(kind, batch.x0, eps, t, path),
            kind=kind,
            condition=drop_labels(batch, self.config.label_dropout, model.spec.num_classes),
        )
        weight = loss_weight(self.config.weight, kind, t, path, self.config.gamma)
        return Loss(mean_square(error) * weight.float(), t)
