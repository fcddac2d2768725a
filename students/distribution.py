"""What students that match distributions share: a generator of few steps, the score of what it
makes, and a critic on the features of that score's network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from core.condition import Condition
from core.data import Batch, ImageSource
from core.diffusion.parameterisations import PREDICTIONS, from_denoised
from core.diffusion.paths import expand
from core.model import Model
from core.networks.heads import WithHeads
from core.noise import Noise
from core.setting import Setting, Steps
from core.training.adversarial import non_saturating
from core.training.method import (
    Context,
    Loss,
    Method,
    Progress,
    mean_square,
    regress,
)
from core.training.roles import OptimizerConfig, Role
from students.teacher import (
    AskedTimesConfig,
    check_not_told,
    load_teacher,
    student_source,
    supervised_by,
    trainable_copy,
)

FAKE_FEATURES = "encoder of the fake score"
SMALLEST_SCALE = 1e-2  # of the normalising distance to the teacher's guess, in units of images


class DistributionConfig(AskedTimesConfig):
    """The keys that these methods share."""

    teacher: str
    """run, folder or hub id of the teacher"""
    steps: Steps = 1
    """steps of the student; its inputs after the first come from its own simulation"""
    start: float = Field(default=1.0, gt=0, le=1)
    """time that the student is told at its first step, whose input is noise of that time's sigma"""
    updates: int = Field(default=1, ge=1, le=1000)
    """steps of the fake score for each of the student"""
    fake_first: int = Field(default=0, ge=0)
    """steps that the fake score learns alone before the student's first"""
    fake: OptimizerConfig | None = None
    """optimiser of the fake score; null: the run's"""
    gan_weight: float = Field(default=0.0, ge=0, le=1e6)
    """weight of the adversarial term in the student's loss; 0: no critic"""
    critic_weight: float = Field(default=1.0, gt=0, le=1e6)
    """weight of the critic's loss in that of the fake score, whose encoder it shares"""
    half: bool = False
    """let both scores run in bfloat16 where the teacher does"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of the student"""


class Scored(NamedTuple):
    """Images of the student, noised: x0 with its gradient, x_t and t, and the guesses of x0 that
    the teacher and the fake score make of x_t; scale [B, 1, ...] is the mean distance of x0 to the
    teacher's guess, without gradient. values: of the critic, where there is one."""

    x0: Tensor
    x_t: Tensor
    t: Tensor
    real: Tensor
    fake: Tensor
    scale: Tensor
    values: Tensor | None

    def normalised(self, errors: Tensor) -> Tensor:
        """[B]: the mean of errors [B, ...] over each image, divided by the scale."""
        return (errors / self.scale).flatten(1).mean(1)


class DistributionMatching(Method):
    """The student makes x0 = G(z); the role `fake` learns the denoiser of what it makes, as a
    teacher learns that of data:

        fake:     min E ||F(x_t, t) - target||^2 at x_t = alpha_t G(z) + sigma_t eps,

    in the teacher's own prediction; what the student minimises is each method's own. The fake score
    takes `updates` steps for each of the student (two time scales), and begins as the teacher, as
    does the student.

    With several steps, t_i = start (1 - i / N), the student's input at step i is what it made at
    step i - 1, noised to t_i: backward simulation (Yin et al. 2024, sec. 4.5), which is how the
    sampler `consistency` will use it. i is uniform over steps, per sample.

    The critic is a head on the fake score's encoder; it sees noised images of the data and of the
    student.

    Against divergence. (1) A student faster than its critic follows a score that is not its own:
    `updates`, `fake_first`. (2) Where the student already agrees with the teacher the normalising
    distance goes to 0 and the gradient to infinity: it is kept above 0.01. (3) What drives the
    student is the small difference of two networks' outputs, which bfloat16 rounds away: both run
    in float32 unless `half`. (4) At t near 0 and 1 neither score says anything: t_min, t_max.

    Deviations: times are uniform in [t_min, t_max] on this repository's t, not on sigma. Where
    there is a critic, its noised fakes are those of the fake score's own loss, and one forward
    serves both.
    """

    critic_wanted = False  # of a method that needs the critic for more than its adversarial term

    def __init__(self, config: DistributionConfig, teacher: Model, source: ImageSource | None):
        self.config, self.source = config, source
        scores = {"autocast": teacher.spec.autocast and config.half}
        self.teacher = teacher.with_network(teacher.network, **scores)
        options = {} if config.start == 1 else {"start": config.start}
        setting = Setting(sampler="consistency", steps=config.steps, options=options)
        student = trainable_copy(teacher, config.dropout, discrete_steps=None, sampling=setting)
        fake = trainable_copy(teacher, 0.0, **scores)
        self.has_critic = config.gan_weight > 0 or self.critic_wanted
        if self.has_critic:
            fake.check_encoder()
            fake = fake.with_network(WithHeads(fake.network))
            self.critic_features = (FAKE_FEATURES,)
        self.roles = {"fake": Role(fake, config.fake, averages={}), "student": Role(student)}
        self.helpers = {"teacher": teacher.network}
        path, N = teacher.path, config.steps
        self.times = config.start * (1 - torch.arange(N, dtype=torch.float64) / N)
        self.first_sigma = float(path.sigma(self.times[0]))

    @classmethod
    def from_config(cls, config: DistributionConfig, context: Context) -> DistributionMatching:
        run = load_teacher(config.teacher, context)
        check_not_told(run.spec)
        source = student_source(run, context)
        torch.manual_seed(context.seed)  # for the critic's heads
        method = cls(config, run.model, source)
        method.roles["fake"].network.to(context.device)
        supervised_by(method, run)
        return method

    def turn(self, step: int) -> tuple[str, ...]:
        since = step - self.config.fake_first + 1
        student = since > 0 and since % self.config.updates == 0
        return ("fake", "student") if student else ("fake",)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        condition = self.condition(batch)
        if role == "fake":
            return self.fake_loss(batch, condition)
        return self.student_loss(batch, condition)

    def student_loss(self, batch: Batch, condition: Condition) -> Loss:
        raise NotImplementedError

    def condition(self, batch: Batch) -> Condition:
        """What the student's images shall be of."""
        return batch.condition

    # ---------------------------------------------------------------- the student's images

    def generate(self, model: Model, rng: Noise, condition: Condition, stream: str) -> Tensor:
        """x0 [B, ...] of the student: all steps but one without gradient, on the bare network, and
        that one through `model`."""
        shape, path, N = model.spec.shape, self.teacher.path, self.config.steps
        times = self.times.to(rng.indices.device)
        x = self.first_sigma * rng.normal(shape, stream)
        if N == 1:
            return model.x0(x, times.expand(len(x)), condition)
        inputs = [x]
        with torch.no_grad():
            for i in range(1, N):
                x0 = self.student.x0(x, times[i - 1].expand(len(x)), condition)
                x = path.mix(x0, rng.normal(shape, stream, i), times[i])
                inputs.append(x)
        i = rng.integers(N, f"{stream}-step")
        x = torch.stack(inputs)[i, torch.arange(len(x), device=x.device)]
        return model.x0(x, times[i], condition)

    # ---------------------------------------------------------------- losses

    def fake_loss(self, batch: Batch, condition: Condition) -> Loss:
        """The fake score's own loss, and its critic's."""
        fake, rng, path = self.roles["fake"].wrapped, batch.rng, self.teacher.path
        with torch.no_grad():
            x0 = self.generate(self.student, rng, condition, "fake-prior")
        t = self.config.draw_times(self.teacher, rng, "fake-time")
        eps = rng.normal(tuple(x0.shape[1:]), "fake-noise")
        kind = self.teacher.spec.prediction
        kind = kind if kind in PREDICTIONS else "x0"
        x_t, target = path.mix(x0, eps, t), from_denoised(kind, x0, eps, t, path)
        if not self.has_critic:
            return Loss(mean_square(regress(fake, x_t, t, target, kind, condition)), t)
        data = path.mix(batch.x0, rng.normal(tuple(x0.shape[1:]), "data-noise"), t)
        both, told = torch.cat([x_t, data]), condition.beside(batch.condition)
        F, values = fake.ask(both, torch.cat([t, t]), told, values=True)
        F, (made, given) = F[: len(x_t)].to(x_t.dtype), values.float().chunk(2)
        guess = fake.parameterisation.express(kind, F, x_t, t, path)
        critic = non_saturating(given) + non_saturating(-made)
        return Loss(mean_square(guess - target) + self.config.critic_weight * critic, t)

    def scored(self, batch: Batch, condition: Condition, through: bool) -> Scored:
        """Images of the student, noised and judged; through: whether the scores pass gradients on
        to them."""
        rng, fake = batch.rng, self.roles["fake"].model
        x0 = self.generate(self.roles["student"].wrapped, rng, condition, "prior")
        t = self.config.draw_times(self.teacher, rng, "time")
        eps = rng.normal(tuple(x0.shape[1:]), "noise")
        x_t = self.teacher.path.mix(x0, eps, t)
        seen = x_t if through else x_t.detach()
        with torch.set_grad_enabled(through):
            real = self.teacher.x0(seen, t, condition)
        if self.has_critic:
            F, values = fake.ask(x_t, t, condition, values=True)
            F, values = F.to(x_t.dtype), values.float()
            F = F if through else F.detach()
            guess = fake.parameterisation.x0(F, seen, t, fake.path)
        else:
            values = None
            with torch.set_grad_enabled(through):
                guess = fake.x0(seen, t, condition)
        scale = (x0 - real).detach().abs().flatten(1).mean(1).clamp(min=SMALLEST_SCALE)
        return Scored(x0, x_t, t, real, guess, expand(scale, x0), values)
