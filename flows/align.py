"""Align Your Flow's Eulerian map distillation (Sabour, Fidler and Kreis 2025, arXiv 2506.14603),
algorithm 1."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from core.data import Batch, ImageSource
from core.diffusion.paths import expand
from core.diffusion.times import TimeConfig, make_time_sampler
from core.model import Model
from core.networks.dropout import same_dropout
from core.noise import Noise
from core.training.derivatives import Derivative, jvp
from core.training.method import Loss, Progress, drop_labels, mean_square, noise_of
from flows.flow_map import FlowMap, FlowMapConfig


class AlignConfig(FlowMapConfig):
    """The keys of Align Your Flow."""

    teacher: str
    """run, folder or hub id of the teacher"""
    length: TimeConfig = TimeConfig(name="logit-normal", mean=-0.8, std=1.0)
    """how the length t - s of the way is drawn; s is uniform in what is left"""
    convert: float = Field(default=0.1, ge=0, le=1)
    """share of the budget before the derivative of the network comes in"""
    warmup: float = Field(default=0.3, ge=1e-6, le=1)
    """share of the budget in which its weight r then rises to `most`"""
    most: float = Field(default=0.99, ge=0, le=1)
    """largest r; what is missing from 1 pulls towards a straight way"""
    offset: float = Field(default=0.1, ge=1e-9, le=1e6)
    """c of the normalised tangent g / (||g|| + c)"""
    derivative: Derivative = "forward"
    """of the network along the flow: forward-mode, or a central difference of two evaluations"""


class Align(FlowMap):
    """The gradient is that of F^T g / (||g|| + c), with the sign and factors that make F smaller
    where f = x_t - (t - s) F would change along the teacher's flow:

        g = F - v + r (t - s) dF/dt,    df/dt = v - F - (t - s) dF/dt (theorem 3.2, eq. 4),

    v the teacher's velocity. r rises from 0, where the loss is a regression on v for every s (eq.
    5), to `most`.

    Deviations: no autoguidance, which takes a second, weaker teacher, but classifier-free guidance
    at one scale. No adversarial finish. The norm is the root mean square, so that c means the same
    at every resolution. The paper's student is its teacher with a second time; here the network may
    be told time on another scale, so that r stays 0 for the first `convert` of the budget, in which
    the student learns the teacher's velocity by its own embedding.
    """

    Config = AlignConfig

    def __init__(
        self, config: AlignConfig, model: Model, source: ImageSource | None, teacher: Model
    ):
        super().__init__(config, model, source, teacher)
        self.sample_length = make_time_sampler(config.length)

    def times(self, rng: Noise) -> tuple[Tensor, Tensor]:
        """t and s, both [B] float64."""
        length = self.sample_length(rng)
        s = rng.uniform("end") * (1 - length)
        return s + length, s

    def weight(self, fraction: float) -> float:
        """r after that fraction of the budget."""
        c = self.config
        return c.most * min(1.0, max(0.0, fraction - c.convert) / c.warmup)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        student, config, r = self.student, self.config, self.weight(progress.fraction)
        t, s = self.times(batch.rng)
        x_t = student.path.mix(batch.x0, noise_of(batch), t)
        condition = drop_labels(batch, config.label_dropout, student.spec.num_classes)
        v = self.teacher(x_t, t, condition)
        rest = v  # what F is to be, less F itself, is the tangent with its sign turned
        if r > 0:
            with same_dropout(x_t):
                _, slope = jvp(student, x_t, t, s, v, condition, config.derivative)
            rest = v - r * expand(t - s, v) * slope
        F = self.roles["student"].wrapped.output(x_t, t, condition, s).float()
        tangent = rest.float() - F.detach()
        norm = expand(mean_square(tangent).sqrt() + config.offset, tangent)
        return Loss(mean_square(F - (F.detach() + tangent / norm)), t)
