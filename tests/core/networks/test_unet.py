"""The U-Net against diffusers' with the same weights, and its derivatives against finite
differences."""

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from core.errors import UserError
from core.networks.unet import ResidualBlock, SelfAttention, UNet
from tests.helpers.models import awake


def _small(**options) -> UNet:
    torch.manual_seed(0)
    options = {
        "channels": 1,
        "side": 8,
        "widths": (8, 16),
        "blocks": 1,
        "attention": (1,),
        "head_width": 8,
    } | options
    return UNet(**options)


def _inputs(net: UNet, batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, net.channels, net.side, net.side)
    given = {
        "x": torch.randn(shape, dtype=torch.float64, generator=generator),
        "t": torch.linspace(0.2, 0.9, batch, dtype=torch.float64),
    }
    if net.second_time is not None:
        given["r"] = given["t"] / 2
    return given


@pytest.mark.parametrize("classes", [0, 10])
def test_equals_diffusers_with_the_same_weights(classes):
    widths = (128, 128)  # at which both have the same groups everywhere
    torch.manual_seed(0)
    ours = UNet(3, 8, widths, blocks=1, attention=(1,), head_width=32, num_classes=classes).eval()
    theirs = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=classes + 1 if classes else None,
    ).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    def copy(a: nn.Module, b: nn.Module) -> None:
        b.load_state_dict(a.state_dict())

    def copy_block(a: ResidualBlock, b: nn.Module) -> None:
        copy(a.norm1, b.norm1), copy(a.conv1, b.conv1), copy(a.modulation, b.time_emb_proj)
        copy(a.norm2, b.norm2), copy(a.conv2, b.conv2)
        if isinstance(a.skip, nn.Conv2d):
            copy(a.skip, b.conv_shortcut)

    def copy_attention(a: SelfAttention, b: nn.Module) -> None:
        copy(a.norm, b.group_norm), copy(a.out, b.to_out[0])
        for linear, weight, bias in zip(
            (b.to_q, b.to_k, b.to_v), a.qkv.weight.chunk(3), a.qkv.bias.chunk(3), strict=True
        ):
            linear.load_state_dict({"weight": weight, "bias": bias})

    def copy_stage(a: nn.Module, level, index: int) -> None:
        copy_block(a.block, level.resnets[index])
        if isinstance(a.attention, SelfAttention):
            copy_attention(a.attention, level.attentions[index])

    (
        copy(ours.time[0], theirs.time_embedding.linear_1),
        copy(ours.time[2], theirs.time_embedding.linear_2),
    )
    if classes:
        copy(ours.label, theirs.class_embedding)
    (
        copy(ours.stem, theirs.conv_in),
        copy(ours.head[0], theirs.conv_norm_out),
        copy(ours.head[2], theirs.conv_out),
    )
    for level in (0, 1):
        copy_stage(ours.down[level], theirs.down_blocks[level], 0)
        for index in (0, 1):
            copy_stage(ours.up[2 * level + index], theirs.up_blocks[level], index)
    copy(ours.shrink[0], theirs.down_blocks[0].downsamplers[0].conv)
    copy(ours.grow[0], theirs.up_blocks[0].upsamplers[0].conv)
    copy_block(ours.middle[0].block, theirs.mid_block.resnets[0])
    copy_attention(ours.middle[0].attention, theirs.mid_block.attentions[0])
    copy_block(ours.middle[1], theirs.mid_block.resnets[1])
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())

    x, t = torch.randn(4, 3, 8, 8), torch.tensor([0.001, 0.3, 0.7, 1.0])
    label = torch.tensor([0, 3, 9, 10]) if classes else None
    with torch.no_grad():
        F, expected = ours(x, t, None, label), theirs(x, 1000 * t, class_labels=label).sample
    torch.testing.assert_close(F, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize("options", [{}, {"patch": 2, "second_time": True, "num_classes": 3}])
def test_forward_derivatives(options):
    """torch.func.jvp along x, t and r against central differences."""
    net = awake(_small(**options))
    given = _inputs(net)
    label = torch.tensor([0, 2, 3]) if net.num_classes else None
    h = 1e-5
    for name in given:
        tangent = torch.randn(
            given[name].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
        )

        def along(value, name=name):
            inputs = {**given, name: value}
            return net(inputs["x"], inputs["t"], inputs.get("r"), label)

        with torch.no_grad():
            value, derivative = torch.func.jvp(along, (given[name],), (tangent,))
            low, high = along(given[name] - h * tangent), along(given[name] + h * tangent)
            torch.testing.assert_close(value, along(given[name]))
        # 1000 t turns fast: the fastest of its waves costs (1000 h)^2 / 6 in the difference
        rtol = 1e-6 if name == "x" else 1e-4
        expected = (high - low) / (2 * h)
        assert float((derivative - expected).norm() / expected.norm()) < rtol
        assert float(expected.abs().max()) > 1e-3


def test_backward_derivatives():
    net = awake(_small(side=4, widths=(4, 4), head_width=4, second_time=True))
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    t, r = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.6, 0.2))
    assert torch.autograd.gradcheck(net, (x, t, r), eps=1e-6, atol=1e-5, check_forward_ad=True)


def test_gradients_reach_every_parameter():
    net = awake(_small(num_classes=3, second_time=True, patch=2))
    given = _inputs(net)
    net(given["x"], given["t"], given["r"], torch.tensor([0, 1, 3])).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert net.label.weight.grad[2].abs().max() == 0  # a label that was not there


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_every_output_sees_every_pixel(patch):
    net = awake(_small(patch=patch, attention=(0, 1)))
    given = _inputs(net, 1)
    for i, j in ((0, 0), (3, 6), (7, 7)):
        x = given["x"].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(x, given["t"])[0, 0, i, j], x)
        assert (gradient.abs() > 0).all()


def test_samples_do_not_mix():
    net = awake(_small())
    given = _inputs(net)
    whole = net(given["x"], given["t"])
    for i in range(3):
        torch.testing.assert_close(net(given["x"][i : i + 1], given["t"][i : i + 1])[0], whole[i])


@pytest.mark.parametrize(
    "options", [{}, {"channels": 3}, {"patch": 2}, {"channels": 3, "side": 16, "patch": 4}]
)
def test_starts_as_zero(options):
    net = _small(**options).double()
    given = _inputs(net)
    F = net(given["x"], given["t"])
    assert F.shape == given["x"].shape and not F.any()
    assert not torch.equal(awake(net)(given["x"], given["t"]), F)


def test_labels():
    net = awake(_small(num_classes=3))
    given = _inputs(net)
    default = net(given["x"], given["t"])
    assert torch.equal(default, net(given["x"], given["t"], None, torch.full((3,), 3)))
    others = [net(given["x"], given["t"], None, torch.full((3,), k)) for k in range(3)]
    for i, a in enumerate([*others, default]):
        for b in [*others, default][:i]:
            assert (a - b).flatten(1).norm(dim=1).min() > 1e-2 * a.norm()
    with pytest.raises(ValueError, match="unconditional"):
        _small()(given["x"].float(), given["t"].float(), None, torch.zeros(3, dtype=torch.long))


def test_second_time():
    given = _inputs(_small(second_time=True))
    fresh = _small(second_time=True).double()
    nn.init.normal_(fresh.head[2].weight)
    # a fresh second time changes nothing yet, so that a teacher's weights start a student's
    assert torch.equal(*(fresh(given["x"], given["t"], r) for r in (given["r"], given["t"])))
    net = awake(_small(second_time=True))
    a, b = (net(given["x"], given["t"], r) for r in (given["r"], given["t"]))
    assert (a - b).norm() > 1e-2 * a.norm()
    with pytest.raises(ValueError, match="second_time"):
        net(given["x"], given["t"])
    with pytest.raises(ValueError, match="second_time"):
        awake(_small())(given["x"], given["t"], given["r"])


def test_single_precision_is_near_double():
    net = awake(_small())
    given = _inputs(net)
    net.requires_grad_(False)
    expected = net(given["x"], given["t"])
    got = net.float()(given["x"].float(), given["t"].float())
    assert float((got - expected).norm() / expected.norm()) < 1e-3


def test_dropout_only_in_training():
    net = awake(_small(dropout=0.5))
    given = _inputs(net)
    assert torch.equal(net(given["x"], given["t"]), net(given["x"], given["t"]))
    net.train()
    assert not torch.equal(net(given["x"], given["t"]), net(given["x"], given["t"]))


def test_images_that_do_not_fit():
    for side, patch, widths in ((7, 1, (8, 16)), (28, 2, (8, 16, 32)), (10, 4, (8,))):
        stride = patch * 2 ** (len(widths) - 1)
        with pytest.raises(UserError, match=f"side {side} .*stride {stride}"):
            UNet(1, side, widths, patch=patch)
    with pytest.raises(UserError, match="level 2"):
        UNet(1, 8, (8, 16), attention=(2,))
