"""DDPM training (Ho et al. 2020, alg. 1), in discrete or continuous time, for any path and
prediction."""

from __future__ import annotations

from pydantic import model_validator

from core.data import Batch, ImageSource
from core.diffusion.predictions import from_denoised
from core.diffusion.times import TimeConfig, make_time_sampler, on_grid
from core.diffusion.weights import Weighting, loss_weight
from core.errors import UserError
from core.training.method import (
    Context,
    MethodConfig,
    Progress,
    Regression,
    RegressionMethod,
    drop_labels,
    images_and_spec,
    new_model,
    noise_of,
)


class DDPMConfig(MethodConfig):
    """weight: see core.diffusion.weights; gamma: of min-snr; label_dropout: share of labels
    replaced by the null label; time: for continuous-time models (model.discrete_steps = null)."""

    weight: Weighting = "simple"
    gamma: float = 5.0
    label_dropout: float = 0.0
    time: TimeConfig = TimeConfig()

    @model_validator(mode="after")
    def _probability(self) -> DDPMConfig:
        if not 0 <= self.label_dropout < 1:
            raise ValueError("label_dropout must be in [0, 1)")
        return self


class DDPM(RegressionMethod):
    """The teacher. With prediction "eps" and weight "simple" this is L_simple (Ho et al. 2020, eq.
    14).

    Deviation: the other predictions take "simple" as the unweighted error of their own target, as
    is usual since Salimans and Ho 2022, and not as the eps error it would be by the letter of Ho et
    al.
    """

    Config = DDPMConfig

    def __init__(self, config: DDPMConfig, context: Context):
        super().__init__(config, context)
        data, self.spec = images_and_spec(context)
        if config.weight == "truncated-snr" and self.spec.prediction == "eps":
            raise UserError(
                "method.weight=truncated-snr is unbounded for model.prediction=eps: use prediction v or x0"
            )
        self.source = ImageSource(data, context.seed)
        self.model = new_model(self.spec, context)
        steps = self.spec.discrete_steps
        self.sample_time = on_grid(steps) if steps else make_time_sampler(config.time)

    def target(self, batch: Batch, progress: Progress) -> Regression:
        path, kind = self.model.path, self.model.prediction
        t, eps = self.sample_time(batch.rng), noise_of(batch)
        return Regression(
            x_t=path.mix(batch.x0, eps, t),
            t=t,
            target=from_denoised(kind, batch.x0, eps, t, path),
            kind=kind,
            weight=loss_weight(self.config.weight, kind, t, path, self.config.gamma),
            label=drop_labels(batch, self.config.label_dropout, self.spec.num_classes),
        )
