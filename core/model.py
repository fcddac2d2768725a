"""Model: a network together with the path it was trained on and the meaning of its output.

The only owner of input and output scalings. A sampler, a student and the evaluation all ask a Model
for (x0, eps) and never look at the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.diffusion.paths import Path, expand
from core.diffusion.predictions import Denoised, Prediction, from_denoised, to_denoised


@dataclass(frozen=True)
class Boundary:
    """The consistency parameterisation f = c_skip x + c_out F (Song et al. 2023, eq. 5 and app. C)
    with f = x at `t_min`.

    In the paper's variables x / alpha and s = sigma / alpha: c_skip = d^2 / ((s - s_min)^2 + d^2)
    and c_out = d (s - s_min) / sqrt(d^2 + s^2), d the standard deviation of the data. F enters with
    a minus sign and x with the paper's input scaling, so that at t_min = 0 on a variance-preserving
    path with d = 1 this *is* v-prediction, alpha x - sigma v: a v-predicting teacher starts the
    student with its own denoiser.
    """

    t_min: float = 0.0
    sigma_data: float = 1.0

    def scalings(self, t: Tensor, path: Path) -> tuple[Tensor, Tensor]:
        """c_skip / alpha and -c_out, float64, of the shape of t: f = c_skip (x / alpha) + c_out
        F."""
        c, first = path.at(t), path.at(torch.tensor(self.t_min, dtype=torch.float64))
        s_min = (first.sigma / first.alpha).to(c.sigma.device)
        # Multiplied through by powers of alpha, so that alpha = 0 (pure noise) is an ordinary time.
        a2, s2, d2 = c.alpha.square(), c.sigma.square(), self.sigma_data**2
        gap = c.sigma - s_min * c.alpha  # alpha (s - s_min)
        return d2 * c.alpha / (gap.square() + d2 * a2), -self.sigma_data * gap / (
            d2 * a2 + s2
        ).sqrt()

    def x0(self, F: Tensor, x: Tensor, t: Tensor, path: Path) -> Tensor:
        """The consistency function f [B, ...] from the network's output F, x [B, ...] and t ([] or
        [B])."""
        skip, out = self.scalings(t, path)
        return expand(skip, x) * x + expand(out, x) * F


class Model(nn.Module):
    """network + path + prediction.

    Args:
        network: `network(x, t, r, label) -> F`.
        path, prediction: how x_t was mixed and what F means.
        boundary: if given, x0 is the consistency function with that boundary and `prediction` must
            be "v".
        discrete_steps: if given, the network was trained at the times k / discrete_steps only, and
            grids snap to them.
        autocast: run the network (nothing else) in bfloat16 where PyTorch deems it safe.
    """

    def __init__(
        self,
        network: nn.Module,
        path: Path,
        prediction: Prediction,
        boundary: Boundary | None = None,
        discrete_steps: int | None = None,
        autocast: bool = False,
    ):
        super().__init__()
        if boundary and prediction != "v":
            raise ValueError("a consistency boundary needs a network that predicts v")
        self.network, self.path, self.prediction = network, path, prediction
        self.boundary, self.discrete_steps, self.autocast = boundary, discrete_steps, autocast

    def output(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, r: Tensor | None = None
    ) -> Tensor:
        """The raw network output F [B, ...] in x's dtype; x [B, ...], t [] or [B], label [B] or
        None."""
        parameter = next(self.network.parameters(), None)
        dtype = parameter.dtype if parameter is not None else x.dtype
        t = t.to(device=x.device, dtype=dtype).expand(len(x))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            return self.network(x.to(dtype), t, r, label).to(x.dtype)

    def read(self, F: Tensor, x: Tensor, t: Tensor) -> Denoised:
        """What output F means at x [B, ...] and t ([] or [B])."""
        if self.boundary is None:
            return to_denoised(self.prediction, F, x, t, self.path)
        x0 = self.boundary.x0(F, x, t, self.path)
        c = self.path.at(t)
        return Denoised(x0, (x - expand(c.alpha, x) * x0) / expand(c.sigma, x))

    def denoised(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Denoised:
        """The guess of (x0, eps) behind x [B, ...] at t ([] or [B])."""
        return self.read(self.output(x, t, label), x, t)

    def x0(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The denoiser E[x0 | x_t] of a teacher, or the consistency function of a student."""
        F = self.output(x, t, label)
        return self.boundary.x0(F, x, t, self.path) if self.boundary else self.read(F, x, t).x0

    def eps(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.denoised(x, t, label).eps

    def u(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The velocity dx/dt of the probability-flow ODE."""
        if self.prediction == "u" and self.boundary is None:
            return self.output(x, t, label)
        return from_denoised("u", *self.denoised(x, t, label), t, self.path)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor | None = None) -> Tensor:
        """One evaluation's step from t to s ([] or [B], s <= t): the DDIM step (Song et al. 2021,
        eq. 12 with eta = 0)."""
        return self.path.mix(*self.denoised(x, t, label), s)
