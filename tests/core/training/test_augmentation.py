"""What a critic is shown in place of an image: moves against torchvision's, holes and colours against
what they may be, and gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional as vision

from core.noise import Noise
from core.training.augmentation import augmented


def images(count: int, side: int = 8, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 + torch.rand(count, channels, side, side, generator=generator)


def test_translation_is_torchvisions_by_every_shift_alike():
    x = images(1, side=16).expand(2000, -1, -1, -1)
    moved = augmented(x, ("translation",), Noise(0, torch.arange(2000)), "s")
    found = torch.zeros(5, 5)
    for down in range(-2, 3):
        for right in range(-2, 3):
            known = vision.affine(x[:1], 0.0, [right, down], 1.0, [0.0, 0.0])
            found[down + 2, right + 2] = (moved == known).flatten(1).all(1).sum()
    assert found.sum() == 2000
    assert (found - 80).abs().max() < 4.5 * 80**0.5  # each is binomial


def test_cutout_is_a_square_centred_anywhere():
    x = images(2000)
    cut = augmented(x, ("cutout",), Noise(0, torch.arange(2000)), "s")
    gone = (cut == 0)[:, 0]
    assert torch.equal(cut[~gone[:, None]], x[~gone[:, None]])
    rows, columns = gone.any(2), gone.any(1)
    assert torch.equal(gone, rows[:, :, None] & columns[:, None, :])  # a rectangle
    assert rows.sum(1).max() == 4 and rows.sum(1).min() == 2  # part of it may be outside
    for side in (rows, columns):  # runs of neighbours
        assert ((side[:, 1:] != side[:, :-1]).sum(1) <= 2).all()
    share = gone.float().mean(0)
    # Of 9 corners along a side, 4 cover a pixel in the middle and 3 the outermost one.
    assert float(share[3:5, 3:5].mean()) == pytest.approx((4 / 9) ** 2, abs=0.03)
    assert float(share[0, 0]) == pytest.approx((3 / 9) ** 2, abs=0.03)


def test_color_is_an_affine_change_of_grey_and_keeps_the_order_of_colours():
    x = images(500)
    changed = augmented(x, ("color",), Noise(0, torch.arange(500)), "s").flatten(1)
    flat = x.flatten(1)
    scale = changed.std(1) / flat.std(1)
    shift = changed.mean(1) - flat.mean(1)
    assert torch.allclose(changed, scale[:, None] * (flat - flat.mean(1, True))
                          + (flat.mean(1) + shift)[:, None], atol=1e-5)  # fmt: skip
    for values, low, high in ((scale, 0.5, 1.5), (shift, -0.5, 0.5)):
        assert low < float(values.min()) < low + 0.02 and high - 0.02 < float(values.max()) < high
    rgb = images(500, channels=3)
    colours = augmented(rgb, ("color",), Noise(0, torch.arange(500)), "s")
    ratio = (colours - colours.mean(1, True)).flatten(1).norm(dim=1)
    ratio = ratio / (rgb - rgb.mean(1, True)).flatten(1).norm(dim=1) / scale
    assert 0 < float(ratio.min()) < 0.05 and 1.95 < float(ratio.max()) < 2  # saturation


@pytest.mark.parametrize("kinds", [("color",), ("translation",), ("cutout",)])
def test_gradients_go_through_and_numbers_are_each_images_own(kinds):
    x = images(6, side=8).double().requires_grad_(True)
    change = lambda x: augmented(x, kinds, Noise(3, torch.arange(6)), "s")
    assert torch.autograd.gradcheck(change, x)
    with torch.no_grad():
        apart = torch.cat(
            [augmented(x[i : i + 1], kinds, Noise(3, torch.tensor([i])), "s") for i in range(6)]
        )
        assert torch.equal(change(x), apart)
        other = augmented(x, kinds, Noise(3, torch.arange(6)), "other")
    assert not torch.equal(other, apart)


def test_nothing_is_changed_where_nothing_is_asked():
    x = images(3)
    assert augmented(x, (), Noise(0, torch.arange(3)), "s") is x
