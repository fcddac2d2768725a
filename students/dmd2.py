"""Distribution matching distillation (Yin et al. 2024, arXiv 2405.14867), and with other
divergences (Xu et al. 2025, arXiv 2502.15681)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from core.condition import Condition
from core.data import Batch, ImageSource
from core.diffusion.paths import expand
from core.model import Model
from core.training.adversarial import non_saturating
from core.training.method import Loss
from students.distribution import DistributionConfig, DistributionMatching

Divergence = Literal["reverse-kl", "forward-kl", "js"]


class DMD2Config(DistributionConfig):
    """The keys of DMD2."""

    updates: int = Field(default=5, ge=1, le=1000)
    """steps of the fake score for each of the student"""
    divergence: Divergence = "reverse-kl"
    """what the student minimises; all but reverse-kl weigh images by the critic's ratio"""
    ratio_min: float = Field(default=0.1, gt=0, le=1e6)
    """least ratio of densities that is believed"""
    ratio_max: float = Field(default=20.0, gt=0, le=1e6)
    """largest such ratio"""

    @model_validator(mode="after")
    def _ratios(self) -> DMD2Config:
        if not self.ratio_min < self.ratio_max:
            raise ValueError(f"ratio_min={self.ratio_min:g}: below ratio_max={self.ratio_max:g}")
        return self


class DMD2(DistributionMatching):
    """The student descends the divergence of what it makes from the teacher's distribution, noised
    at all levels:

        student:  min E h ||x0 - sg[x0 - (fake(x_t) - teacher(x_t)) / mean |x0 - teacher(x_t)|]||^2
                      + gan_weight E softplus(-D(x_t, t))

    (Yin et al. 2024, eq. 1 with the weight of Yin et al. 2023, eq. 8; the scores do not pass
    gradients on). Noised further, two distributions always overlap, and the difference of their
    denoisers is that of their scores times sigma^2 / alpha. What both share, the fake score and the
    critic on its encoder, is in students/distribution.py.

    `divergence` multiplies by h(r) = f''(r) r^2 of the ratio r = p_teacher / p_student, which the
    critic estimates, r = exp D (Xu et al. 2025, eq. 5): 1 for reverse-kl, which is DMD2, r for
    forward-kl, 2 r / (1 + r) for js. D is the mean of its map of values.

    Deviations: h is scaled to h(1) = 1 and r clipped, where Xu et al. also divide by the mean of h
    in bins of time over the batch: a sample's loss would depend on who shares its batch. The
    critic's ratio is that of data to student, for the critic sees data.
    """

    Config = DMD2Config

    def __init__(self, config: DMD2Config, teacher: Model, source: ImageSource | None):
        self.critic_wanted = config.divergence != "reverse-kl"
        super().__init__(config, teacher, source)

    def weight(self, values: Tensor | None) -> Tensor | float:
        """h [B] of the critic's values [B, K]."""
        c = self.config
        if c.divergence == "reverse-kl":
            return 1.0
        D = values.detach().mean(1).clamp(math.log(c.ratio_min), math.log(c.ratio_max))
        r = D.exp()
        return r if c.divergence == "forward-kl" else 2 * r / (1 + r)

    def student_loss(self, batch: Batch, condition: Condition) -> Loss:
        s = self.scored(batch, condition, through=False)
        step = (s.fake - s.real) / s.scale
        h = self.weight(s.values)
        if isinstance(h, Tensor):
            step = expand(h, step) * step
        # Half a square whose gradient in x0 is the step, meaned over the image
        loss = 0.5 * (s.x0 - (s.x0 - step).detach()).square().flatten(1).mean(1)
        if self.config.gan_weight:
            loss = loss + self.config.gan_weight * non_saturating(s.values)
        return Loss(loss.float(), s.t)
