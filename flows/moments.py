"""Inductive moment matching (Zhou, Ermon and Song 2025, arXiv 2503.07565), algorithm 1."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from core.data import Batch, ImageSource
from core.diffusion.paths import expand
from core.errors import UserError
from core.model import Model
from core.networks.dropout import same_dropout
from core.noise import Noise
from core.training.method import Loss, Progress, drop_labels, noise_of
from flows.flow_map import FlowMap, FlowMapConfig


class MomentsConfig(FlowMapConfig):
    """The keys of inductive moment matching."""

    particles: int = Field(default=4, ge=1, le=1024)
    """M: samples that are compared with each other, all with the same times; 1 is a consistency
    model's loss"""
    among: int = Field(default=64, ge=1, le=100_000)
    """consecutive images among which groups of M are formed, by label"""
    t_min: float = Field(default=1e-3, gt=0, lt=0.5)
    """smallest time"""
    t_max: float = Field(default=0.994, gt=0.5, lt=1)
    """largest time"""
    halvings: int = Field(default=12, ge=1, le=30)
    """k: r lies (eta_max - eta_min) / 2^k below t in eta = sigma / alpha"""
    a: int = Field(default=1, ge=0, le=4)
    """exponent of alpha in the weight of t"""
    b: float = Field(default=4.0, ge=-20, le=20)
    """log signal-to-noise ratio from which on the weight of t falls"""


class Moments(FlowMap):
    """The jump f_{s,t}(x_t) = x_t - (t - s) F is brought to the jump f^-_{s,r}(x_r) from r < t on
    the same line between data and noise, as distributions: groups of M samples that share s, r and
    t are compared by the maximum mean discrepancy (eq. 12),

        w(s, t) / M^2 sum_jk k(f^j, f^k) + k(f^-j, f^-k) - 2 k(f^j, f^-k),

    with the Laplace kernel k(x, y) = exp(-max(||x - y||, 1e-8) / ((t - s) D)), D the number of
    pixels (sec. 5), r = max(s, eta^-1(eta(t) - (eta_max - eta_min) / 2^k)), t uniform on [t_min,
    t_max], s uniform on [t_min, t], and w = 1/2 sigmoid(b - lambda) (-dlambda/dt) alpha^a /
    (alpha^2 + sigma^2), lambda = 2 log(alpha / sigma) (eq. 13).

    Deviations: of class-conditional models only samples of one class are compared, which is the
    discrepancy of the joint distribution; groups are formed by class among `among` consecutive
    images, and take the times of their first member. The mean of k(f^-, f^-), without gradient,
    stays in the loss. Both evaluations are in float32, since r is close to t. No teacher takes the place of the data. The mean velocity is the paper's
    parameterisation on this path (Euler-FM) at a data deviation of 1.
    """

    Config = MomentsConfig

    def __init__(
        self,
        config: MomentsConfig,
        model: Model,
        source: ImageSource | None,
        teacher: Model | None = None,
    ):
        if config.teacher is not None or teacher is not None:
            raise UserError("method.teacher: moment matching learns from data alone; leave it null")
        if config.among % config.particles:
            raise UserError(
                f"method.among={config.among} is no multiple of method.particles="
                f"{config.particles}: groups would be broken"
            )
        if model.spec.text is not None:
            raise UserError(
                "moment matching compares samples of one condition, and no two images share a "
                "caption: remove model.network.text"
            )
        super().__init__(config, model, source)

    def times(self, rng: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """t, r and s, all [B] float64."""
        c, path = self.config, self.student.path
        t = c.t_min + (c.t_max - c.t_min) * rng.uniform("time")
        s = c.t_min + (t - c.t_min) * rng.uniform("end")

        def eta(time: Tensor) -> Tensor:
            at = path.at(time)
            return at.sigma / at.alpha

        step = (eta(t.new_tensor(c.t_max)) - eta(t.new_tensor(c.t_min))) / 2**c.halvings
        before = (eta(t) - step).clamp(min=1e-12)
        return t, torch.maximum(s, path.time(-before.log())), s

    def order(self, batch: Batch) -> Tensor:
        """[B] int64: the batch by groups of M, where neighbours have one label if they can."""
        c, size = self.config, len(batch.x0)
        if size % c.among:
            raise UserError(
                f"train.batch_size gives every process {size} images at a time, no multiple of "
                f"method.among={c.among}: groups would depend on the number of processes"
            )
        index = torch.arange(size, device=batch.x0.device)
        if batch.condition.label is None:
            return index
        labels = self.student.spec.num_classes + 1
        return torch.argsort((index // c.among) * labels + batch.condition.label, stable=True)

    def weight(self, t: Tensor) -> Tensor:
        """w [B] of t [B], float64."""
        c = self.student.path.at(t)
        falling = 2 * (c.dsigma / c.sigma - c.dalpha / c.alpha)  # -dlambda/dt
        bound = torch.sigmoid(self.config.b - 2 * self.student.path.lam(t))
        return 0.5 * bound * falling * c.alpha**self.config.a / (c.alpha**2 + c.sigma**2)

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        student, M, path = self.student, self.config.particles, self.student.path
        condition = drop_labels(batch, self.config.label_dropout, student.spec.num_classes)
        order = self.order(batch._replace(condition=condition))
        back = torch.argsort(order)
        first = order.view(-1, M)[:, :1].expand(-1, M).flatten()[back]  # of each one's group
        t, r, s = (time[first] for time in self.times(batch.rng))
        eps = noise_of(batch)
        x_t, x_r = path.mix(batch.x0, eps, t), path.mix(batch.x0, eps, r)
        with torch.no_grad(), same_dropout(x_t):
            F_r = student.output(x_r, r, condition, s, autocast=False)
        F_t = self.roles["student"].wrapped.output(x_t, t, condition, s, autocast=False)
        label = None if condition.label is None else condition.label[order].view(-1, M)
        groups = [
            (x.float() - expand(time - s, F.float()) * F.float())[order].unflatten(0, (-1, M))
            for x, time, F in ((x_t, t, F_t), (x_r, r, F_r))
        ]
        loss = discrepancy(*groups, (t - s)[order].view(-1, M)[:, 0], label)
        return Loss((self.weight(t)[order].float() * loss.flatten())[back], t)


def discrepancy(f: Tensor, g: Tensor, scale: Tensor, label: Tensor | None) -> Tensor:
    """[G, M]: each particle's part of the squared discrepancy of groups f and g [G, M, ...]; the
    sum over a group, divided by M, is the group's.

    Args:
        scale: [G], of the kernel.
        label: [G, M], or None; kernels between different ones are 0.
    """
    f, g = f.flatten(2), g.flatten(2)
    width = (scale.to(f.dtype) * f.shape[2]).view(-1, 1, 1)
    same = 1.0 if label is None else (label[:, :, None] == label[:, None]).to(f.dtype)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        gap = (x[:, :, None] - y[:, None]).square().sum(-1)
        # The root has no gradient at 0, where a particle is compared with itself.
        distance = gap.clamp(min=1e-16).sqrt()
        return torch.exp(-distance / width) * same

    return (kernel(f, f) + kernel(g, g) - 2 * kernel(f, g)).mean(2)
