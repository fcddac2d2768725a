"""The perceptron: its inputs, its derivative, and points through the whole of a model."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from core.condition import Condition
from core.model import ModelSpec
from core.networks.mlp import MLPConfig
from core.training.derivatives import jvp


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """With no parameter at its start of zero, so that every part of it shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def test_each_input_counts_and_samples_do_not_mix():
    net = randomised(MLPConfig(width=16, blocks=2, second_time=True, time_scale=1).build(2, 1, 3))
    x, t, r = torch.randn(4, 2, 1, 1), torch.rand(4), torch.rand(4)
    label = torch.tensor([0, 1, 2, 3])
    out = net(x, t, r, label)
    assert out.shape == x.shape
    for other in (
        net(x + 1, t, r, label),
        net(x, t + 0.1, r, label),
        net(x, t, r + 0.1, label),
        net(x, t, r, label.roll(1)),
    ):
        assert (out - other).abs().flatten(1).amax(1).min() > 1e-6
    torch.testing.assert_close(net(x[:2], t[:2], r[:2], label[:2]), out[:2])
    torch.testing.assert_close(net(x, t, r), net(x, t, r, torch.full((4,), 3)))


def test_the_weight_of_guidance_counts_and_nothing_said_is_1():
    net = randomised(MLPConfig(width=16, blocks=2, guidance=(1, 4)).build(2, 1, 3))
    x, t, label = torch.randn(3, 2, 1, 1), torch.rand(3), torch.tensor([0, 1, 2])
    out = net(x, t, None, label, torch.tensor([1.0, 2.0, 3.0]))
    off = net(x, t, None, label)
    torch.testing.assert_close(out[:1], off[:1])
    assert (out[1:] - off[1:]).abs().flatten(1).amax(1).min() > 1e-3
    with pytest.raises(ValueError, match="guidance"):
        randomised(MLPConfig(width=16).build(2, 1, 3))(x, t, None, label, t)


def test_it_starts_at_zero_and_refuses_what_it_was_not_built_for():
    net = MLPConfig(width=16).build(2, 1, 0)
    x, t = torch.randn(3, 2, 1, 1), torch.rand(3)
    assert (net(x, t) == 0).all()
    with pytest.raises(ValueError, match="second_time"):
        net(x, t, t)
    with pytest.raises(ValueError, match="unconditional"):
        net(x, t, None, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValidationError, match="must be even"):
        MLPConfig(width=15)
    assert MLPConfig(conditional=False).build(2, 1, 3).label is None


@pytest.mark.parametrize("backend", ["forward", "difference"])
def test_its_derivative_along_the_flow_is_that_of_autograd(backend):
    spec = ModelSpec(
        network=MLPConfig(width=16, blocks=2, second_time=True, time_scale=1),
        path="rectified",
        prediction="mean-velocity",
        channels=2,
        side=1,
        num_classes=3,
        codec="identity",
    )
    model = spec.build()
    model = model.with_network(randomised(model.network).double())
    x, tangent = (torch.randn(4, 2, 1, 1, dtype=torch.float64) for _ in range(2))
    t, s = torch.full((4,), 0.7, dtype=torch.float64), torch.full((4,), 0.2, dtype=torch.float64)
    condition = Condition(label=torch.tensor([0, 1, 2, 1]))
    value, slope = jvp(model, x, t, s, tangent, condition, backend)
    torch.testing.assert_close(value, model.output(x, t, condition, s), rtol=1e-5, atol=1e-5)

    def along(h: torch.Tensor) -> torch.Tensor:
        return model.output(x + h * tangent, t + h, condition, s)

    zero = torch.zeros((), dtype=torch.float64)
    exact = torch.autograd.functional.jvp(along, zero, torch.ones_like(zero))[1]
    tolerance = 1e-9 if backend == "forward" else 1e-4
    torch.testing.assert_close(slope, exact, rtol=tolerance, atol=tolerance)


def test_in_two_halves_it_is_the_network():
    """The encoder's part is what the middle block puts out, and the rest takes it from there."""
    net = randomised(MLPConfig(width=16, blocks=3).build(2, 1, 3))
    x, t, label = torch.randn(4, 2, 1, 1), torch.rand(4), torch.tensor([0, 1, 2, 3])
    seen: list[torch.Tensor] = []
    handle = net.blocks[1].register_forward_hook(lambda module, given, out: seen.append(out))
    whole = net(x, t, label=label)
    handle.remove()
    assert torch.equal(net(x, t, label=label, features=True).flatten(1), seen[0])
    assert torch.equal(net.decode(net.encode(x, t, label=label)), whole)
    steer = torch.nn.functional.silu(net.embedded(x, t, None, label)[0])
    known = net.head(torch.nn.functional.silu(net.blocks[2](seen[0], steer))).view_as(x)
    assert torch.equal(whole, known)
    assert (net.decode(net.encode(x + 1, t, label=label)) - whole).abs().max() > 1e-3
