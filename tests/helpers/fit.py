"""Training of a method on exact Gaussian data, without folders: the roles alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.condition import UNCONDITIONED
from core.data import Batch
from core.model import Model
from core.noise import Noise
from core.training.method import Method, Progress
from core.training.roles import AverageConfig, OptimizerConfig, Role
from tests.helpers.gaussian import MEAN, SHAPE, STD

B = 256


def with_student(method: Method, network: nn.Module) -> Method:
    """The method with this network as its student, in place of a copy of its teacher's."""
    old = method.roles["student"]
    student = Model(network, old.model.spec)
    method.roles["student"] = Role(student, old.settings, old.average_settings)
    return method


def gaussian_batch(size: int, first: int = 0) -> Batch:
    """Fresh samples of the Gaussian data, addressed from `first`."""
    rng = Noise(0, torch.arange(size) + first)
    return Batch(MEAN + STD * rng.normal(SHAPE, "data"), UNCONDITIONED, rng)


def loss_of(method: Method, batch: Batch | None = None, fraction: float = 0.0) -> Tensor:
    """The student's loss [B] on a batch, by default one of 64."""
    progress = Progress(0, 0, fraction)
    return method.loss("student", batch or gaussian_batch(64), progress).per_sample.detach()


def fit(
    method: Method, iterations: int, stage: int = 0, first: int = 0, lr: float = 3e-3
) -> list[float]:
    """One stage of `iterations` steps of 256 fresh samples with a cosine rate; returns the losses.
    The averages of the stage before are there when it begins, as in the trainer."""
    role = method.roles["student"]
    method.begin_stage(stage)
    if role.optimizer is None:
        optimizer = OptimizerConfig(lr=lr, decay="cosine", clip=0.0)
        role.begin(optimizer, AverageConfig(half_life=1e-3, power=None), B)
    else:
        role.begin_stage()
    losses = []
    for i in range(iterations):
        progress = Progress(i * B, stage, i / iterations)
        batch = gaussian_batch(B, (first + i) * B)
        loss = method.loss("student", batch, progress).per_sample.mean()
        loss.backward()
        role.step(i * B, progress.fraction)
        losses.append(float(loss.detach()))
    return losses
