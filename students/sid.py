"""Score identity distillation (Zhou et al. 2024, arXiv 2404.04057), and with an adversary (SiDA,
Zhou et al. 2025, arXiv 2410.14919)."""

from __future__ import annotations

from pydantic import Field

from core.condition import UNCONDITIONED, Condition
from core.data import Batch
from core.training.adversarial import non_saturating
from core.training.method import Loss
from students.distribution import DistributionConfig, DistributionMatching

LARGEST_VALUE = 10.0  # of the critic, as in SiDA's code


class SiDConfig(DistributionConfig):
    """The keys of SiD; gan_weight above 0 makes it SiDA."""

    alpha: float = Field(default=1.2, ge=-10, le=10)
    """of the loss; 1.2 is the paper's for images, 1.0 SiDA's"""


class SiD(DistributionMatching):
    """The student brings the denoiser of what it makes to the teacher's, by

        student:  min E (T - f) . [(T - x0) - alpha (T - f)] / mean |x0 - T|,

    T = teacher(x_t) and f = fake(x_t), with gradients through both scores (eq. 23, with the weight
    of the authors' code). For an exact f the expectation is (1 - alpha) ||T - f||^2, weights apart,
    for E[x0 | x_t] = f; the paper's finding is that alpha above 1, negative in value, is best, since
    f is not exact and the first term alone carries the gradient that it lacks.

    Data-free: images of the batch are not looked at, and labels are drawn anew, uniformly;
    captions are those of the batch. SiDA,
    gan_weight > 0, looks at them: it adds softplus(-D) of a critic on the fake score's encoder, D
    clamped to +-10 and divided by the same weight.

    Deviations: the authors' optimiser has no warm-up and their student starts at sigma = 2.5,
    which is `start` about 0.76 on a cosine path; see students/distribution.py for the rest.
    """

    Config = SiDConfig

    def condition(self, batch: Batch) -> Condition:
        classes = self.teacher.spec.num_classes
        if self.teacher.spec.text is not None:
            return batch.condition
        if self.has_critic or not classes:
            return batch.condition if self.has_critic else UNCONDITIONED
        return Condition(label=batch.rng.integers(classes, "label"))

    def student_loss(self, batch: Batch, condition: Condition) -> Loss:
        s = self.scored(batch, condition, through=True)
        gap = s.real - s.fake
        loss = s.normalised(gap * ((s.real - s.x0) - self.config.alpha * gap))
        if self.config.gan_weight:
            D = s.values.clamp(-LARGEST_VALUE, LARGEST_VALUE)
            loss = loss + self.config.gan_weight * non_saturating(D) / s.scale.flatten()
        return Loss(loss.float(), s.t)
