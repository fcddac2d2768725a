"""Self-distilled flow maps: Lagrangian, Eulerian and progressive (Boffi, Albergo and
Vanden-Eijnden 2025, arXiv 2505.18825), algorithms 2 to 4."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from core.condition import Condition
from core.data import Batch, ImageSource
from core.diffusion.paths import expand
from core.diffusion.times import TimeConfig, make_pair_sampler
from core.errors import UserError
from core.model import Model
from core.networks.dropout import same_dropout
from core.training.derivatives import STEP, Derivative, jvp
from core.training.method import Loss, Progress, drop_labels, noise_of
from flows.flow_map import FlowMap, FlowMapConfig, adaptive, rows, square


class SelfDistilledConfig(FlowMapConfig):
    """The keys of self-distilled flow maps."""

    loss: Literal["lagrangian", "eulerian", "progressive"] = "lagrangian"
    """which property of a flow map is learned where s < t"""
    diagonal: float = Field(default=0.75, ge=0, le=1)
    """share of the batch with s = t, which learns the velocity"""
    time: TimeConfig = TimeConfig()
    """how each of the two times is drawn; uniform is uniform on the triangle s < t"""
    middle: Literal["half", "uniform"] = "half"
    """of progressive: where on the way the two jumps meet"""
    derivative: Derivative = "forward"
    """of eulerian: forward-mode, or a central difference of two evaluations"""
    power: float = Field(default=0.0, ge=0, le=10)
    """p of the adaptive weight 1 / (||error||^2 + c)^p; 0: the squared error itself"""
    offset: float = Field(default=1e-3, ge=1e-9, le=1e9)
    """c of the adaptive weight"""


class SelfDistilled(FlowMap):
    """On the diagonal, s = t, the network learns the velocity (eq. 12); off it, with X_s = x_t - (t
    - s) F(x_t, t, s) and u the velocity F(., t, t) of the network itself without gradient, one of

    lagrangian: dX_s / ds = u(X_s, s) (eq. 13);
    eulerian: dX_s / dt + u(x_t, t) dX_s / dx = 0 (eq. 14), that is F = u - (t - s) dF/dt along u;
    progressive: X_s is two jumps, F = g F(x_t, t, m) + (1 - g) F(X_m, m, s) with m = t - g (t - s)
    (eq. 22), g = 1/2 or uniform;

    squared, with gradients stopped as recommended (eq. 94). From a teacher, u is the teacher's
    velocity, which is flow map distillation (Boffi et al. 2024), and the diagonal learns it too.

    Deviations: no learned weight of s and t (eq. 19). `power: 1` is MeanFlow's adaptive weight in
    its place; with it trainings from scratch ran away on digits and on points, since an error that
    has grown hardly pulls back any more, and the targets are the network's own. Lagrangian: the
    derivative in s, which has a gradient, is the central difference of two evaluations in float32,
    since forward mode has no backward through this network's attention nor through a wrapper for
    many processes. Eulerian: the derivative in t is without gradient altogether, the second choice
    of app. F.4.
    """

    Config = SelfDistilledConfig

    def __init__(
        self,
        config: SelfDistilledConfig,
        model: Model,
        source: ImageSource | None,
        teacher: Model | None = None,
    ):
        super().__init__(config, model, source, teacher)
        if config.loss == "lagrangian" and model.spec.network.dropout:
            raise UserError(
                f"model.network.dropout={model.spec.network.dropout:g}: method.loss=lagrangian "
                "differences two evaluations, which dropout makes two networks; set it to 0"
            )
        self.sample_times = make_pair_sampler(config.time, 1 - config.diagonal)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        config, student = self.config, self.student
        (t, s), eps = self.sample_times(batch.rng), noise_of(batch)
        x_t = student.path.mix(batch.x0, eps, t)
        condition = drop_labels(batch, config.label_dropout, student.spec.num_classes)
        batch = batch._replace(condition=condition, eps=eps)
        off = s < t
        target, jumps = torch.empty_like(x_t), rows(batch, off).condition
        if not bool(off.all()):
            on = rows(batch, ~off)
            velocity = self.velocity(on.x0, on.eps, x_t[~off], t[~off], on.condition)
            target[~off] = velocity.to(target.dtype)
        if config.loss == "lagrangian":
            error = self._lagrangian(x_t, t, s, condition, off, target)
        else:
            if bool(off.any()):
                make = self.eulerian if config.loss == "eulerian" else self.progressive
                fraction = batch.rng.uniform("middle")[off]
                target[off] = make(x_t[off], t[off], s[off], jumps, fraction).to(target.dtype)
            F = self.roles["student"].wrapped.output(x_t, t, condition, s)
            error = F.float() - target.float()
        return Loss(adaptive(square(error), config.power, config.offset), t)

    def eulerian(
        self, x: Tensor, t: Tensor, s: Tensor, condition: Condition, fraction: Tensor
    ) -> Tensor:
        """What F(x, t, s) is to be [B, ...]; `fraction` is for others."""
        u = self.best_velocity(x, t, condition)
        with same_dropout(x):
            _, slope = jvp(self.student, x, t, s, u, condition, self.config.derivative)
        return u - expand(t - s, x) * slope

    @torch.no_grad()
    def progressive(
        self, x: Tensor, t: Tensor, s: Tensor, condition: Condition, fraction: Tensor
    ) -> Tensor:
        """What F(x, t, s) is to be [B, ...]; `fraction` [B]: of the way, the first jump's, where it
        is drawn."""
        g = torch.full_like(fraction, 0.5) if self.config.middle == "half" else fraction
        middle = t - g * (t - s)
        with same_dropout(x):
            first = self.student.output(x, t, condition, middle)
            there = x - expand(t - middle, x) * first
            second = self.student.output(there, middle, condition, s)
        return torch.lerp(second, first, expand(g, x))

    def _lagrangian(
        self, x: Tensor, t: Tensor, s: Tensor, condition: Condition, off: Tensor, target: Tensor
    ) -> Tensor:
        """The residual [B, ...]: off the diagonal dX_s/ds - u(X_s, s), on it F - target. One call
        of the wrapped network, with the evaluations before s and behind it side by side."""
        low, high = (s - STEP).clamp(min=0.0), torch.minimum(s + STEP, t)
        jump = Condition(*(None if part is None else part[off] for part in condition))
        F = (
            self.roles["student"]
            .wrapped.output(
                torch.cat([x, x[off]]),
                torch.cat([t, t[off]]),
                condition.beside(jump),
                torch.cat([torch.where(off, low, s), high[off]]),
                autocast=False,
            )
            .float()
        )
        error = F[: len(x)] - target.float()
        if not bool(off.any()):
            return error
        x, t, s, low, high = x[off], t[off], s[off], low[off], high[off]
        before, behind = F[: len(off)][off], F[len(off) :]
        # X at `high` less X at `low`, over the distance, without the difference of large numbers
        rate = before + expand((t - high) / (high - low), F) * (before - behind)
        with torch.no_grad():
            here = torch.lerp(before, behind, expand((s - low) / (high - low), F))
            u = self.best_velocity(x - expand(t - s, x) * here.to(x.dtype), s, jump)
        return error.index_put((off,), rate - u.float())
