"""Rectified flow and reflow (Liu, Gong and Liu 2023, arXiv 2209.03003), algorithm 1."""

from __future__ import annotations

from core.data import Batch, ImageSource
from core.data.pairs import PairSource
from core.diffusion.predictions import from_denoised
from core.diffusion.times import TimeConfig, make_time_sampler
from core.errors import UserError
from core.training.method import (
    Context,
    MethodConfig,
    Progress,
    Regression,
    RegressionMethod,
    Spent,
    drop_labels,
    images_and_spec,
    new_model,
    noise_of,
)


class RectifiedFlowConfig(MethodConfig):
    """time: how t is drawn (core.diffusion.times); label_dropout: as for a teacher; pairs: a folder
    made by scripts.pairs, which makes this reflow (null: noise independent of the data); init: a
    run of the same network to start from."""

    time: TimeConfig = TimeConfig()
    label_dropout: float = 0.0
    pairs: str | None = None
    init: str | None = None


class RectifiedFlow(RegressionMethod):
    """min E ||(eps - x0) - u(x_t, t)||^2 on x_t = (1 - t) x0 + t eps (eq. 1; t runs from data to
    noise here, so u has the opposite sign of the paper's v). With stored pairs (eps, x0) of a flow
    or a teacher this is the k-th rectified flow.

    On a path other than the rectified one the target is that path's own dx/dt: flow matching
    (Lipman et al. 2023).
    """

    Config = RectifiedFlowConfig

    def __init__(self, config: RectifiedFlowConfig, context: Context):
        super().__init__(config, context)
        if config.init is None:
            data, self.spec = images_and_spec(context)
            if self.spec.prediction != "u":
                raise UserError(
                    f"model.prediction={self.spec.prediction}: a flow predicts u, the velocity"
                )
            self.model = new_model(self.spec, context)
        else:
            if context.model is not None:
                raise UserError(
                    "method.init brings its own network: remove the section 'model' from the config"
                )
            run = context.load(config.init, "ema", context.device)
            if run.spec.prediction != "u":
                raise UserError(
                    f"method.init={config.init} predicts {run.spec.prediction}: a flow predicts u, the velocity"
                )
            self.spec, self.model = run.spec, run.model.train().requires_grad_(True)
            data = context.data.load().seen_by(run.num_classes)
        self.pairs = PairSource(config.pairs, context.seed) if config.pairs else None
        if self.pairs:
            self.teacher_name = self.pairs.manifest.run_name
            self.pairs.check_fits(self.spec)
        self.source = self.pairs or ImageSource(data, context.seed)
        self.sample_time = make_time_sampler(config.time)

    def spent(self) -> Spent:
        return (
            Spent(self.pairs.manifest.evals, self.pairs.manifest.seconds) if self.pairs else Spent()
        )

    def target(self, batch: Batch, progress: Progress) -> Regression:
        path = self.model.path
        t, eps = self.sample_time(batch.rng), noise_of(batch)
        return Regression(
            x_t=path.mix(batch.x0, eps, t),
            t=t,
            target=from_denoised("u", batch.x0, eps, t, path),
            kind="u",
            weight=t.new_ones(t.shape),
            label=drop_labels(batch, self.config.label_dropout, self.spec.num_classes),
        )
