"""Philox against Random123's known answers; the numbers made of it against the distributions they
claim."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from core.noise import Noise, philox

# kat_vectors of Random123 1.14 for philox4x32, 10 rounds: counter, key, result
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize("counter, key, result", KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    words = philox(
        tuple(torch.tensor([int(w, 16)]) for w in counter.split()),
        tuple(int(w, 16) for w in key.split()),
    )
    assert [f"{int(w):08x}" for w in words] == result.split()


def _noise(count: int, seed: int = 0) -> Noise:
    return Noise(seed, torch.arange(count))


def test_uniform_is_uniform():
    u = _noise(1000).uniform("a", count=101).numpy()
    assert u.min() > 0 and u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(_noise(50_000).uniform("a").numpy(), "uniform").pvalue > 1e-3


def test_normal_is_normal():
    z = _noise(1000).normal((3, 7, 9), "a", dtype=torch.float64).numpy()
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(z[:, 0, 0, 0], "norm").pvalue > 1e-3  # one element across samples
    assert abs(stats.kurtosis(z.ravel())) < 5 * np.sqrt(24 / z.size)
    # Normal in every direction, not only along the axes: Box and Muller's pairs included.
    mixed = z.reshape(1000, -1) @ np.linalg.qr(np.random.default_rng(0).normal(size=(189, 189)))[0]
    assert stats.kstest(mixed.ravel(), "norm").pvalue > 1e-3


def test_elements_are_uncorrelated():
    z = _noise(4000).normal((8, 8), "a", dtype=torch.float64).numpy().reshape(4000, 64)
    for power in (1, 2):
        correlation = np.corrcoef(z.T**power) - np.eye(64)
        assert np.abs(correlation).max() < 5 / np.sqrt(4000)
        assert correlation[np.triu_indices(64, 1)].std() == pytest.approx(
            1 / np.sqrt(4000), rel=0.1
        )


def test_integers_are_uniform():
    k = _noise(70_000).integers(7, "a")
    counts = torch.bincount(k, minlength=7).numpy()
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3


def test_addresses_are_independent():
    """Numbers that differ in any part of the address are unrelated; the same address gives the same
    numbers."""
    indices = torch.arange(20_000)

    def z(seed=0, stream="a", step=0, offset=0):
        return Noise(seed, indices + offset).normal((), stream, step, dtype=torch.float64).numpy()

    base = z()
    assert (base == z()).all()
    others = [
        z(seed=1),
        z(seed=-1),
        z(stream="b"),
        z(step=1),
        z(step=2),
        z(offset=2**32),
        z(offset=2**40),
    ]
    for a, b in itertools.combinations([base, *others], 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(len(base))
        assert abs(np.corrcoef(a**2, b**2)[0, 1]) < 5 / np.sqrt(len(base))
    assert abs(np.corrcoef(base[:-1], base[1:])[0, 1]) < 5 / np.sqrt(
        len(base)
    )  # neighbouring samples


@pytest.mark.parametrize("size", [1, 7, 64])
def test_any_split_gives_the_same_numbers(size):
    indices = torch.arange(100) * 3 + 5
    whole = Noise(3, indices)
    pieces = [Noise(3, part) for part in indices.split(size)]
    for draw in (
        lambda n: n.normal((3, 5, 5), "x", step=4),
        lambda n: n.uniform("x", step=4),
        lambda n: n.uniform("x", count=6),
        lambda n: n.integers(10, "x"),
    ):
        assert torch.equal(draw(whole), torch.cat([draw(piece) for piece in pieces]))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Noise(3, indices[order]).normal((4,), "x"), whole.normal((4,), "x")[order])


def test_indices_beyond_32_bits():
    large = torch.tensor([5, 5 + 2**32, 5 + 2**33, 5 + 2**62, 2**63 - 1])
    u = Noise(0, large).uniform("a", count=8)
    assert len(torch.unique(u)) == u.numel()
    assert torch.equal(u[:1], Noise(0, torch.tensor([5])).uniform("a", count=8))


def test_dtype_only_rounds():
    noise = _noise(10)
    single, double = noise.normal((4,), "a"), noise.normal((4,), "a", dtype=torch.float64)
    assert single.dtype == torch.float32 and torch.equal(single, double.float())
