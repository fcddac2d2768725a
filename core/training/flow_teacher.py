"""A trained model as the velocity that a flow or a flow map learns from, on whatever path."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.condition import UNCONDITIONED, Condition
from core.diffusion.parameterisations import ConsistencyFunction, from_denoised
from core.diffusion.paths import Path, expand
from core.errors import UserError
from core.model import Model, ModelSpec
from core.networks.text import same_tokens
from core.runs import Run
from core.sampling.denoisers import check_guidance
from core.training.method import Context


class FlowTeacher:
    """The velocity dx/dt of a model's probability flow, on another path than the model's own.

    All Gaussian paths are one flow: x at t on `path` is, but for its scale, x' at the time t' of
    the model's path that has the same sigma / alpha, with the same guess of data and noise. With x
    / (alpha + sigma) and w = sigma / (alpha + sigma) nothing is infinite at either end.

    Args:
        model: predicts eps, x0, v, u or a mean velocity.
        path: of x and t.
        guidance: scale of classifier-free guidance inside the velocity; 1 is off. Two evaluations.
    """

    def __init__(self, model: Model, path: Path, guidance: float = 1.0):
        self.model, self.path, self.guidance = model, path, guidance

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, condition: Condition = UNCONDITIONED) -> Tensor:
        """x [B, ...] at t [B] in (0, 1] -> dx/dt [B, ...] in x's dtype."""
        y, time = self._on_own_path(x, t)
        if self.guidance == 1.0:
            F = self.model.output(y, time, condition)
        else:
            null = condition.without_label(self.model.spec.num_classes)
            both, times = condition.beside(null), torch.cat([time, time])
            F, F_null = self.model.output(torch.cat([y, y]), times, both).chunk(2)
            F = torch.lerp(F_null, F, self.guidance)
        return from_denoised("u", *self.model.read(F, y, time), t, self.path)

    def _on_own_path(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        own, here = self.model.path, self.path
        if own.config == here.config:
            return x, t
        # A path that does not end in pure noise has no more of it than at its own t = 1.
        last = own.lam(t.new_ones(()))
        time = own.time(torch.maximum(here.lam(t), last)).clamp(max=1.0)
        a, b = here.at(t), own.at(time)
        return expand((b.alpha + b.sigma) / (a.alpha + a.sigma), x) * x, time


def load_flow_teacher(folder: str, context: Context, spec: ModelSpec, guidance: float) -> Run:
    """The averaged weights of the run that a model of this spec is to learn from.

    Raises:
        UserError: its images or classes are others, it has no velocity, or guidance or dropped
            labels are asked of one that never learned its null label.
    """
    run = context.load(folder, "ema", context.device)
    own, words = run.spec, "{0.channels}x{0.side}x{0.side} and {0.num_classes} classes".format
    if (own.channels, own.side, own.num_classes) != (spec.channels, spec.side, spec.num_classes):
        raise UserError(
            f"method.teacher={folder} was trained on {words(own)}, and this run on {words(spec)}: "
            "set data, and model.network.conditional, to fit the teacher"
        )
    if not same_tokens(own.text, spec.text):
        raise UserError(
            f"method.teacher={folder} reads captions otherwise than this run: give both the same "
            "model.network.text (captions, length, encoder)"
        )
    if own.codec_sha256 != spec.codec_sha256:
        raise UserError(
            f"method.teacher={folder} sees images through another codec: set data.codec to the "
            "autoencoder that it was trained with, or leave it out where that has none"
        )
    if isinstance(own.prediction, ConsistencyFunction) or own.discrete_steps == 1:
        raise UserError(
            f"method.teacher={folder} maps noise to data and has no velocity: take a diffusion "
            "model or a flow"
        )
    if spec.null_trained and own.null_trained is False:
        raise UserError(
            f"method.teacher={folder} never learned its null label: set method.label_dropout=0"
        )
    try:
        check_guidance(own, guidance)
    except UserError as error:
        raise UserError(f"method.teacher={folder}: {error}") from error
    return run


def copy_fitting(network: nn.Module, teacher: nn.Module) -> int:
    """Copies every tensor of the teacher's network that has a namesake of its shape in `network`;
    returns how many that were."""
    own, theirs = network.state_dict(), teacher.state_dict()
    fitting = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
    network.load_state_dict(own | fitting)
    return len(fitting)
