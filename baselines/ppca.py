"""Probabilistic principal component analysis (Tipping and Bishop 1999, "Probabilistic Principal
Component Analysis")."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from baselines.one_step import one_step_spec
from core.data import Batch, ImageData
from core.errors import UserError
from core.model import Model
from core.training.method import (
    Context,
    Loss,
    Method,
    MethodConfig,
    Progress,
    Spent,
    Stage,
    new_model,
)
from core.training.roles import Role


class PPCAConfig(MethodConfig):
    """The number of principal directions is model.network.latent."""


class PPCA(Method):
    """x ~ N(mu, W W^T + s^2 I), by maximum likelihood in closed form: no steps of training.

    s^2 is the mean of the eigenvalues left out (eq. 8) and W = U (L - s^2 I)^(1/2) of those kept
    (eq. 7). Sampling writes the symmetric root of the covariance, U L^(1/2) U^T + s (I - U U^T), so
    that one image's worth of noise is enough where the paper's W z + mu + s eps draws q numbers
    more; the distribution is the same. One model a class, and one of all images for the null label:
    a mixture with known memberships.
    """

    Config = PPCAConfig

    def __init__(self, config: PPCAConfig, model: Model, data: ImageData):
        begun = time.perf_counter()
        self.config, self.roles = config, {"student": Role(model)}
        network, latent = model.network, model.spec.network.latent
        images = model.codec.encode(data.images, torch.float64).flatten(1)
        classes = [data.labels == c for c in range(network.num_classes)]
        classes.append(torch.ones(len(images), dtype=torch.bool))
        with torch.no_grad():
            for row, members in enumerate(classes):
                mean, U, scales, rest = fit(images[members], latent)
                network.mean[row], network.directions[row] = mean.float(), U.float()
                network.scales[row], network.rest[row] = scales.float(), float(rest)
        self.fitted = Spent(0.0, time.perf_counter() - begun, len(images))

    @classmethod
    def from_config(cls, config: PPCAConfig, context: Context) -> PPCA:
        data, spec = one_step_spec(context, "affine")
        return cls(config, new_model(spec, context), data)

    def stages(self) -> list[Stage]:
        return []

    def spent(self) -> Spent:
        return self.fitted

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        raise AssertionError("PPCA has no stage of training")


def fit(x: Tensor, latent: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maximum likelihood of x [N, D]: mean [D], principal directions U [D, latent], the roots of
    their eigenvalues [latent], and s [].

    Raises:
        UserError: fewer images than directions.
    """
    N, D = x.shape
    if not latent < min(N, D):
        raise UserError(
            f"network.latent={latent}: PPCA of {N} images of {D} numbers has at most {min(N, D) - 1} directions"
        )
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh(
        (x - mean).T @ (x - mean) / N
    )  # ascending; the likelihood's own 1 / N
    values = values.clamp(min=0)
    return (
        mean,
        vectors[:, -latent:].flip(1),
        values[-latent:].flip(0).sqrt(),
        values[:-latent].mean().sqrt(),
    )
