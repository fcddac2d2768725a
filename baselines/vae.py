"""A variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114) with a calibrated decoder
(Rybkin et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from baselines.one_step import one_step_spec
from core.data import Batch, ImageSource
from core.model import Model
from core.training.method import Context, Loss, Method, MethodConfig, Progress, new_model
from core.training.roles import Role


class VAEConfig(MethodConfig):
    """The size of the code is model.network.latent."""


class VAE(Method):
    """Minimises -E_q log p(x | z) + KL(q(z | x) || p(z)) (eq. 10 of the paper), in nats per number
    of the image.

    p(x | z) is Gaussian with one standard deviation for all pixels, learned with the rest: the
    sigma-VAE (Rybkin et al. 2021, arXiv 2006.13202, sec. 3), which needs no weight on the KL term
    to be tuned. Given a class, encoder and decoder see its label. Samples are the decoder's mean,
    as is usual: its pixel noise would only be seen as noise.
    """

    Config = VAEConfig

    def __init__(self, config: VAEConfig, model: Model, source: ImageSource | None):
        self.config, self.source, self.roles = config, source, {"student": Role(model)}

    @classmethod
    def from_config(cls, config: VAEConfig, context: Context) -> VAE:
        data, spec = one_step_spec(context, "autoencoder")
        return cls(config, new_model(spec, context), ImageSource(data, context.seed))

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        x, inputs, spec = batch.x0, batch.condition.inputs(), self.student.spec
        noise = batch.rng.normal(tuple(x.shape[1:]), "eps")
        t = torch.ones(len(x), device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=spec.autocast):
            network = self.roles["student"].prepared
            given, mean, log_variance = network(x, t, None, noise=noise, **inputs)
        log_std = self.student.network.log_std
        loss = negative_elbo(x, given.float(), mean.float(), log_variance.float(), log_std)
        return Loss(loss, t)


def negative_elbo(
    x: Tensor, given: Tensor, mean: Tensor, log_variance: Tensor, log_std: Tensor
) -> Tensor:
    """[B], nats per number: x, given [B, C, S, S] and its decoding, mean, log_variance [B, latent]
    of the code, log_std []."""
    D = x[0].numel()
    squares = (x - given).square().flatten(1).sum(1)
    reconstruction = 0.5 * squares * torch.exp(-2 * log_std) + D * (
        log_std + 0.5 * math.log(2 * math.pi)
    )
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return (reconstruction + divergence) / D
