"""Both backends of the directional derivative against each other, autograd and a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.condition import Condition
from core.counting import count_evals
from core.networks.dropout import same_dropout
from core.networks.unet import UNet
from core.training.derivatives import jvp
from tests.helpers.models import model_of


def network(**options) -> UNet:
    torch.manual_seed(0)
    shape = dict(widths=(8, 16), blocks=1, attention=(1,), head_width=8, num_classes=3)
    net = UNet(1, 8, second_time=True, time_scale=4.0, **shape, **options)
    with torch.no_grad():
        for parameter in net.parameters():  # so that no branch is silent
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def scene(dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, 5, 1, 8, 8, dtype=dtype, generator=generator)
    t = torch.tensor([0.3, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    return x, t, 0.5 * t, v, Condition(torch.tensor([0, 1, 2, 3, 0]))


def by_autograd(model, x, t, s, v, condition):
    """d/dh F(x + h v, t + h, s), by the double-backward trick: the derivative of <w, J^T u>."""

    def F(x, t):
        return model.output(x, t, condition, s, autocast=False)

    x, t = x.clone().requires_grad_(), t.clone().requires_grad_()
    out = F(x, t)
    w = torch.zeros_like(out, requires_grad=True)
    in_x, in_t = torch.autograd.grad(out, (x, t), w, create_graph=True)
    along = (in_x * v).sum() + in_t.sum()
    return torch.autograd.grad(along, w)[0]


def test_forward_mode_is_autograds():
    model = model_of(network().double(), "rectified", "mean-velocity", num_classes=3)
    x, t, s, v, condition = scene()
    value, slope = jvp(model, x, t, s, v, condition)
    torch.testing.assert_close(
        slope, by_autograd(model, x, t, s, v, condition), rtol=1e-9, atol=1e-9
    )
    with torch.no_grad():
        assert torch.equal(value, model.output(x, t, condition, s))
    assert float(slope.abs().mean()) > 0.1


def test_difference_converges_to_forward_mode():
    """In float64 the central difference is off by its second order alone, inside the interval; at
    t = 1 it is one-sided."""
    model = model_of(network().double(), "rectified", "mean-velocity", num_classes=3)
    x, t, s, v, condition = scene()
    value, slope = jvp(model, x, t, s, v, condition)
    near, difference = jvp(model, x, t, s, v, condition, "difference")
    error = (difference - slope).flatten(1).abs().amax(1) / slope.abs().max()
    assert float(error[:4].max()) < 1e-4 and float(error[4]) < 1e-2
    torch.testing.assert_close(near, value, rtol=1e-3, atol=1e-3)


def test_float32_backends_agree_to_a_percent():
    model = model_of(network(), "rectified", "mean-velocity", num_classes=3)
    x, t, s, v, condition = scene(torch.float32)
    slopes = [jvp(model, x, t, s, v, condition, kind)[1] for kind in ("forward", "difference")]
    assert float((slopes[0] - slopes[1])[:4].abs().max()) < 1e-2 * float(slopes[0].abs().max())


@pytest.mark.parametrize("backend", ["forward", "difference"])
def test_dropout_masks_are_those_of_the_forward_that_follows(backend):
    model = model_of(network(dropout=0.5).train(), "rectified", "mean-velocity", num_classes=3)
    x, t, s, v, condition = scene(torch.float32)
    torch.manual_seed(7)
    with same_dropout(x):
        value, _ = jvp(model, x, t, s, v, condition, backend)
    with torch.no_grad():
        after, other = (model.output(x, t, condition, s) for _ in range(2))
    assert float((value - after)[:4].abs().max()) < 0.02 * float(after.abs().max())
    assert float((other - after).abs().max()) > 0.1 * float(after.abs().max())


@pytest.mark.parametrize(("backend", "price"), [("forward", 2), ("difference", 2)])
def test_price_is_two_evaluations(backend, price):
    model = model_of(network(), "rectified", "mean-velocity", num_classes=3, autocast=True)
    x, t, s, v, condition = scene(torch.float32)
    with count_evals(model.network) as counter:
        _, slope = jvp(model, x, t, s, v, condition, backend)
    assert counter.evals == price * 5 and slope.dtype == torch.float32
    assert not slope.requires_grad and not any(p.grad is not None for p in model.parameters())


class Known(nn.Module):
    """F = x^2 sin(3 t) + t r: d/dh F(x + h v, t + h, s) = 2 x v sin 3t + 3 x^2 cos 3t + t + r,
    since r = t - s moves with t."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, r):
        t, r = t.view(-1, 1, 1, 1), r.view(-1, 1, 1, 1)
        return self.scale * (x.square() * (3 * t).sin() + t * r)


@pytest.mark.parametrize("backend", ["forward", "difference"])
def test_closed_form(backend):
    model = model_of(Known(), "rectified", "mean-velocity")
    x, t, s, v, _ = scene()
    _, slope = jvp(model, x, t, s, v, backend=backend)
    T, R = t.view(-1, 1, 1, 1), (t - s).view(-1, 1, 1, 1)
    known = 2 * x * v * (3 * T).sin() + 3 * x.square() * (3 * T).cos() + T + R
    rough = 1e-12 if backend == "forward" else 1e-4
    torch.testing.assert_close(slope[:4], known[:4], rtol=rough, atol=rough)
