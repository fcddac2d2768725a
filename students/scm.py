"""Simple, stable consistency models, sCM (Lu and Song 2025, arXiv 2410.11081), algorithm 1: sCD
with a teacher's velocity, sCT with the data's."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.condition import Condition
from core.data import Batch, ImageSource
from core.diffusion.paths import expand
from core.diffusion.times import NoiseTimeConfig, make_noise_time_sampler
from core.model import Model
from core.networks.dropout import same_dropout
from core.training.derivatives import Derivative, jvp
from core.training.method import (
    Context,
    Loss,
    Method,
    MethodConfig,
    Progress,
    noise_of,
)
from core.training.roles import OptimizerConfig, Role
from students.retimed import retimed
from students.teacher import (
    check_not_told,
    consistency_copy,
    consistency_from_scratch,
    load_teacher,
    student_source,
    supervised_by,
    with_guidance,
)
from students.trigflow import TrigFlow


class SCMConfig(MethodConfig):
    """The keys of sCM."""

    velocity: Literal["teacher", "data"] = "teacher"
    """dx/dt along the way: the teacher's (sCD), or that of the data and the noise at hand (sCT)"""
    teacher: str | None = None
    """run, folder or hub id of the model that the student starts from, and of sCD's teacher; null:
    sCT from scratch"""
    time: NoiseTimeConfig = NoiseTimeConfig(mean=-1.0, std=1.4)
    """how times are drawn"""
    sigma_data: float = Field(default=1.0, ge=1e-6, le=1e6)
    """standard deviation of the data in TrigFlow"""
    normalisation: float = Field(default=0.1, ge=0, le=1e6)
    """c of the tangent g / (||g|| + c), with the root mean square as norm; 0: the tangent itself"""
    warmup: int = Field(default=5_120_000, ge=0)
    """images over which the tangent's second part, which the derivative is in, is faded in"""
    weighting: Literal["learned", "none"] = "learned"
    """learned: e^w ||error||^2 - w with a network w(t) of its own"""
    prior: Literal["inverse-noise", "none"] = "inverse-noise"
    """weight that the learned one multiplies: 1 / (sigma_data tan t) of TrigFlow, or 1"""
    weight_lr: float = Field(default=1e-3, ge=0, le=1e6)
    """learning rate of the weight's network"""
    derivative: Derivative = "forward"
    """of the network along the way: forward-mode, or a central difference of two evaluations"""
    step: float = Field(default=1e-3, ge=1e-6, le=0.25)
    """of the difference, in t"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of a student that starts from a run; from scratch model.network.dropout holds"""
    time_scale: float | None = Field(default=1.0, gt=0, le=1e6)
    """what times are multiplied by before a student that starts from a run embeds them, whatever
    its teacher was told; null: as its teacher; from scratch model.network.time_scale holds"""

    @model_validator(mode="after")
    def _teacher(self) -> SCMConfig:
        if self.velocity == "teacher" and self.teacher is None:
            raise ValueError("velocity=teacher needs a teacher: name one, or set velocity=data")
        return self


class LogWeight(nn.Module):
    """w(t), the logarithm of a weight, for times t [B] in [0, 1]: a small network that is 0 at
    first."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.arange(1, width // 2 + 1).float())
        self.net = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, t: Tensor) -> Tensor:
        phase = t.float()[:, None] * self.frequencies * 0.5
        return self.net(torch.cat([phase.sin(), phase.cos()], 1))[:, 0]


class SCM(Method):
    """With the model seen through TrigFlow (students/trigflow.py), t its angle and F its output,

        g = -cos^2 t (sigma_d F^- - dx/dt) - r cos t sin t (x + sigma_d dF^-/dt),
        L = e^{w(t)} / D ||F - F^- - g / (||g|| + c)||^2 - w(t)    (eq. 8 and alg. 1),

    where dF/dt is the derivative along (dx/dt, 1) and g the tangent of the consistency function
    times cos t, its second part faded in by r. dx/dt is sigma_d F of the teacher (sCD), or cos t z
    - sin t x0 (sCT). w is a role of its own, trained on the student's squared error before its
    step.

    Deviations: the derivative is taken in float32 on a forward of its own, so that the trained
    forward is an ordinary one for wrappers of many processes. The network is left as it is: the
    paper changes its time embedding (positional in place of Fourier features of large scale, which
    is what this repository's U-Net has) and adds normalisation to its adaptive group norms (double
    normalisation). Its weight's network has no average and its own rate, without decay. The prior
    weight is stated where the paper's proposal of times leaves it (sec. 4.2). sigma_data is 1 where
    the paper has 0.5, so that on a variance-preserving path F is the teacher's v itself.
    """

    Config = SCMConfig

    def __init__(
        self, config: SCMConfig, student: Model, teacher: Model | None, source: ImageSource | None
    ):
        self.config, self.source, self.teacher = config, source, teacher
        self.roles = {"student": Role(student)}
        if config.weighting == "learned":
            torch.manual_seed(0)
            network = LogWeight().to(student.device)
            optimizer = OptimizerConfig(lr=config.weight_lr, clip=0.0)
            # A function of time alone is no evaluation of a network on images.
            self.roles["weight"] = Role(network, optimizer, averages={}, counted=False)
        if teacher is not None:
            self.helpers = {"teacher": teacher.network}
        self.sample_time = make_noise_time_sampler(config.time, student.path)
        self.errors: dict[int, tuple[Tensor, Tensor]] = {}  # the student's, for its weight

    @classmethod
    def from_config(cls, config: SCMConfig, context: Context) -> SCM:
        if config.teacher is None:
            student, source = consistency_from_scratch(config.dropout, context)
            return cls(config, student, None, source)
        run = load_teacher(config.teacher, context)
        first = run.model if config.time_scale is None else retimed(run.model, config.time_scale)
        student, source = consistency_copy(first, config.dropout), student_source(run, context)
        if config.velocity == "data":
            check_not_told(run.spec)
            method = cls(config, student, None, source)
            method.started_from = {run.name: run.weights_sha256}
            return method
        method = cls(config, student, run.model, source)
        supervised_by(method, run)
        return method

    def turn(self, step: int) -> tuple[str, ...]:
        return ("student", "weight") if "weight" in self.roles else ("student",)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        first = int(batch.rng.indices[0])
        if role == "weight":
            t, error = self.errors.pop(first)
            w = self.roles["weight"].wrapped(t)
            return Loss(w.exp() * error - w, t)
        t, error = self.error(with_guidance(batch, self.student.spec), progress)
        weight = self.prior(t).float()
        if "weight" in self.roles:
            self.errors[first] = (t, (weight * error).detach())
            weight = weight * self.roles["weight"].network(t).detach().exp()
        return Loss(weight * error, t)

    def prior(self, t: Tensor) -> Tensor:
        """[B] weight before the learned one."""
        if self.config.prior == "none":
            return torch.ones_like(t)
        return torch.exp(self.student.path.lam(t))  # sigma_data tan(angle) is sigma / alpha

    def error(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """t [B] and ||F - F^- - g / (||g|| + c)||^2 / D [B]."""
        config, path = self.config, self.student.path
        t, eps = self.sample_time(batch.rng), noise_of(batch)
        sigma_data = config.sigma_data
        x, angle, _ = TrigFlow(self.student, sigma_data).inputs(path.mix(batch.x0, eps, t), t)
        cos, sin = expand(angle.cos(), x), expand(angle.sin(), x)
        with torch.no_grad():
            if config.velocity == "data":
                velocity = cos * sigma_data * eps - sin * batch.x0
            else:
                teacher = TrigFlow(self.teacher, sigma_data)
                velocity = sigma_data * teacher.output(x, t, batch.condition).float()
        r = min(1.0, progress.images / config.warmup) if config.warmup else 1.0
        g = self.tangent(x, t, velocity, r, batch.condition)
        if config.normalisation:
            norm = g.square().flatten(1).mean(1).sqrt()
            g = g / expand(norm + config.normalisation, g)
        trained = TrigFlow(self.roles["student"].wrapped, sigma_data)
        out = trained.output(x, t, batch.condition).float()
        # The value of the trained forward itself, which bfloat16 may round otherwise than the
        # derivative's: what is left of the difference is the tangent, as in the paper.
        return t, (out - out.detach() - g).square().flatten(1).mean(1)

    def tangent(
        self, x: Tensor, t: Tensor, velocity: Tensor, r: float, condition: Condition
    ) -> Tensor:
        """g [B, ...]: cos t times the derivative of the consistency function along `velocity` =
        dx/dt [B, ...] (r = 1), where the times t [B] are the model's and t here their angle."""
        config, sigma_data = self.config, self.config.sigma_data
        flow = TrigFlow(self.student, sigma_data)
        angle, speed, _ = flow.angle(t)
        with same_dropout(x):
            along = velocity * expand(speed, x)
            F, slope = jvp(flow, x, t, None, along, condition, config.derivative, config.step)
        slope = slope / expand(speed, x)
        cos, sin = expand(angle.cos(), x), expand(angle.sin(), x)
        return -cos.square() * (sigma_data * F - velocity) - r * cos * sin * (
            x + sigma_data * slope
        )
