"""The DiT against diffusers' with the same weights, its derivatives against finite differences and
autograd, and its precision."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import Timesteps
from pydantic import ValidationError
from torch import nn

from core.condition import Condition
from core.errors import UserError
from core.model import ModelSpec
from core.networks.dit import Block, DiT, DiTConfig
from core.training.derivatives import jvp
from tests.helpers.models import awake


def small(channels: int = 1, side: int = 8, num_classes: int = 0, **options) -> DiT:
    torch.manual_seed(0)
    options = {"width": 16, "depth": 2, "heads": 2, "patch": 2} | options
    return DiTConfig(**options).build(channels, side, num_classes)


def inputs(net: DiT, batch: int = 3) -> tuple[torch.Tensor, ...]:
    """x, t and r or None, in float64."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, net.channels, net.side, net.side)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    t = torch.linspace(0.2, 0.9, batch, dtype=torch.float64)
    return x, t, None if net.second_time is None else t / 2


def with_weights_of(ours: DiT, theirs: DiTTransformer2DModel) -> None:
    """Theirs gets our weights. It has the embedders in every block, and asks for those of the last
    layer in the first. It orders the numbers of a patch by pixel and then channel, and ours by
    channel and then pixel."""

    def copy(a: nn.Module, b: nn.Module) -> None:
        b.load_state_dict(a.state_dict())

    def copy_block(a: Block, b: nn.Module) -> None:
        copy(ours.time[0], b.norm1.emb.timestep_embedder.linear_1)
        copy(ours.time[2], b.norm1.emb.timestep_embedder.linear_2)
        copy(ours.label, b.norm1.emb.class_embedder.embedding_table)
        # diffusers divides the exponent by 127 where Peebles and Xie's code divides it by 128
        b.norm1.emb.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        copy(a.modulation, b.norm1.linear)
        copy(a.first, b.ff.net[0].proj), copy(a.second, b.ff.net[2])
        copy(a.attention.out, b.attn1.to_out[0])
        qkv = a.attention.qkv
        for linear, weight, bias in zip(
            (b.attn1.to_q, b.attn1.to_k, b.attn1.to_v),
            qkv.weight.chunk(3),
            qkv.bias.chunk(3),
            strict=True,
        ):
            linear.load_state_dict({"weight": weight, "bias": bias})

    for a, b in zip(ours.blocks, theirs.transformer_blocks, strict=True):
        copy_block(a, b)
    copy(ours.stem, theirs.pos_embed.proj), copy(ours.modulation, theirs.proj_out_1)
    order = torch.arange(len(ours.head.bias)).view(ours.channels, -1).T.flatten()
    theirs.proj_out_2.load_state_dict(
        {"weight": ours.head.weight[order], "bias": ours.head.bias[order]}
    )


def test_equals_diffusers_with_the_same_weights():
    ours = small(3, 8, num_classes=10, width=48, depth=3, heads=4).eval()
    theirs = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=3,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,  # of the second norm alone; that of the others is fixed, and that of Peebles and Xie
    ).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with_weights_of(ours, theirs)
    copies = 2 * sum(p.numel() for m in (ours.time, ours.label) for p in m.parameters())
    size, their_size = (sum(p.numel() for p in n.parameters()) for n in (ours, theirs))
    assert size + copies == their_size

    x, t = torch.randn(4, 3, 8, 8), torch.tensor([0.001, 0.3, 0.7, 1.0])
    label = torch.tensor([0, 3, 9, 10])
    with torch.no_grad():
        F = ours(x, t, None, label)
        expected = theirs(x, 1000 * t, class_labels=label).sample
    torch.testing.assert_close(F, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize("options", [{}, {"num_classes": 3, "patch": 4}])
def test_starts_as_zero(options):
    """Every block as the identity, and the output at zero."""
    net = small(**options).double()
    x, t, _ = inputs(net)
    assert net(x, t).shape == x.shape and not net(x, t).any()
    h, embedding = torch.randn(2, 5, 16).double(), torch.randn(2, 16).double()
    for block in net.blocks:
        assert torch.equal(block(h, embedding), h)
    assert awake(net)(x, t).std() > 1e-2


@pytest.mark.parametrize("backend", ["forward", "difference"])
def test_derivative_along_the_flow_is_that_of_autograd(backend):
    network = DiTConfig(width=16, depth=2, heads=2, second_time=True, time_scale=1)
    sizes = {"channels": 1, "side": 4, "num_classes": 3}
    spec = ModelSpec(network=network, path="rectified", prediction="mean-velocity", **sizes)
    model = spec.build()
    model = model.with_network(awake(model.network))
    x, t, r = inputs(model.network)
    tangent, condition = torch.randn_like(x), Condition(label=torch.tensor([0, 1, 3]))
    value, slope = jvp(model, x, t, r, tangent, condition, backend)
    torch.testing.assert_close(value, model.output(x, t, condition, r), rtol=1e-5, atol=1e-5)

    def along(h: torch.Tensor) -> torch.Tensor:
        return model.output(x + h * tangent, t + h, condition, r)

    zero = torch.zeros((), dtype=torch.float64)
    exact = torch.autograd.functional.jvp(along, zero, torch.ones_like(zero))[1]
    tolerance = 1e-9 if backend == "forward" else 1e-4
    torch.testing.assert_close(slope, exact, rtol=tolerance, atol=tolerance)
    assert float(exact.abs().max()) > 1e-2


def test_derivatives_against_finite_differences():
    net = awake(small(side=4, width=8, second_time=True))
    x, t, r = (value[:1].requires_grad_() for value in inputs(net))
    assert torch.autograd.gradcheck(net, (x, t, r), eps=1e-6, atol=1e-5, check_forward_ad=True)


def test_gradients_reach_every_parameter():
    net = awake(small(num_classes=3, second_time=True))
    x, t, r = inputs(net)
    net(x, t, r, torch.tensor([0, 1, 3])).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_precision():
    """Of float32 and of bfloat16 by autocast, beside float64: relative to the output's size."""
    net = awake(small(num_classes=3, width=64, depth=4))
    x, t, _ = inputs(net, 8)
    label = torch.arange(8) % 4
    with torch.no_grad():
        expected = net(x, t, None, label)
        net = net.float()
        single = net(x.float(), t.float(), None, label)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x.float(), t.float(), None, label)
    assert half.dtype == torch.bfloat16
    for got, low, high in ((single, 0, 1e-4), (half, 1e-4, 0.03)):
        error = float((got - expected).norm() / expected.norm())
        assert low < error < high


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_every_output_sees_every_pixel_and_knows_its_place(patch):
    net = awake(small(patch=patch))
    x, t, _ = inputs(net, 1)
    for i, j in ((0, 0), (3, 6), (7, 7)):
        given = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(given, t)[0, 0, i, j], given)
        assert (gradient.abs() > 0).all()
    for axis in (2, 3):  # without positions a roll by whole patches would only roll the output
        rolled = net(x.roll(patch, axis), t).roll(-patch, axis)
        assert (rolled - net(x, t)).norm() > 1e-2 * net(x, t).norm()


def test_samples_do_not_mix_and_inputs_count():
    net = awake(small(num_classes=3, second_time=True, guidance=(1.0, 5.0)))
    x, t, r = inputs(net)
    label, told = torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 3.0])
    whole = net(x, t, r, label, told)
    one = slice(1, 2)
    torch.testing.assert_close(net(x[one], t[one], r[one], label[one], told[one]), whole[one])
    for other in (
        net(x, t / 2, r, label, told),
        net(x, t, r / 2, label, told),
        net(x, t, r, label.roll(1), told),
        net(x, t, r, label, told + 1),
    ):
        assert (other - whole).flatten(1).norm(dim=1).min() > 1e-3 * whole.norm()
    null = torch.full((3,), 3)
    assert torch.equal(net(x, t, r, None, None), net(x, t, r, null, torch.ones(3)))


def test_features_are_half_of_the_blocks():
    net = awake(small(depth=3))
    x, t, _ = inputs(net)
    encoded = net.encode(x, t)
    assert torch.equal(net(x, t, features=True), encoded.middle)
    assert torch.equal(net.decode(encoded), net(x, t))
    assert encoded.middle.shape == (3, net.middle_width, 4, 4)
    before = encoded.middle.clone()
    with torch.no_grad():
        net.blocks[2].first.weight.zero_()
        assert torch.equal(net.encode(x, t).middle, before)
        net.blocks[1].first.weight.zero_()
        assert not torch.equal(net.encode(x, t).middle, before)


def test_dropout_only_in_training():
    net = awake(small(dropout=0.5))
    x, t, _ = inputs(net)
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


def test_what_does_not_fit():
    with pytest.raises(UserError, match="side 7 .* side 2"):
        small(side=7)
    for options, words in (({"width": 18}, "by 4"), ({"heads": 3}, "heads 3 must divide")):
        with pytest.raises(ValidationError, match=words):
            small(**options)
    x, t, _ = inputs(small())
    with pytest.raises(ValueError, match="second_time"):
        awake(small())(x, t, t)
    with pytest.raises(ValueError, match="unconditional"):
        awake(small())(x, t, None, torch.zeros(3, dtype=torch.int64))
