"""Averages after training against averages that were really kept, and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from core.errors import UserError
from core.tensors import read_tensors
from core.training.snapshots import (
    SnapshotConfig,
    _average,
    exponent,
    exponent_of,
    half_life_of,
    keep_snapshot,
    power_averages,
    seen,
    solve,
    synthesise,
)
from core.training.trainer import Trainer
from lab import load
from scripts.ema import write_average
from tests.helpers.command_lines import refused
from tests.helpers.stopped import Stopped, save_then_stop
from tests.helpers.tiny import train_tiny

BATCH = 10


class Walk(nn.Module):
    """Weights that wander: after step k they are `path[k - 1]`."""

    def __init__(self, size: int = 4):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))


def walked(tmp_path, steps: int, every: int, others: tuple[float, ...] = ()):
    """Trains nothing: averages of a random walk, with snapshots; and beside them averages with the
    exponents `others` that are kept all along. Returns those, and the path."""
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(steps, 4, generator=generator).cumsum(0) * 0.1
    network = Walk()
    kept = power_averages(network, SnapshotConfig(every=every))
    direct = [_average(network, gamma) for gamma in others]
    for step, weights in enumerate(path, 1):
        with torch.no_grad():
            network.weight.copy_(weights)
        for average in [*kept.values(), *direct]:
            average.update()
        if step % every == 0:
            keep_snapshot(tmp_path, kept, step * BATCH, 0, BATCH)
    return direct, path


def test_exponents_are_those_of_the_paper():
    """Its two averages (section 3.2): gamma 16.97 and 6.94; and the width of the profile by hand."""
    assert (exponent(0.05), exponent(0.1)) == pytest.approx((16.97, 6.94), abs=5e-3)
    gamma = exponent(0.15)

    def moment(k: int) -> float:
        return quad(lambda x: (gamma + 1) * x ** (gamma + k), 0, 1)[0]

    assert (moment(2) - moment(1) ** 2) ** 0.5 == pytest.approx(0.15)


def test_an_average_is_the_power_function_of_the_weights_it_saw():
    """Step tau has the weight of (tau, tau + 1] at t = steps + 1, the first that of [0, 2]."""
    network, steps, gamma = Walk(1), 7, 3.0
    for probe in range(1, steps + 1):
        average = _average(network, gamma)
        for step in range(1, steps + 1):
            with torch.no_grad():
                network.weight.fill_(float(step == probe))
            average.update()
        t, low = seen(average), 0.0 if probe == 1 else probe
        share = ((probe + 1) / t) ** (gamma + 1) - (low / t) ** (gamma + 1)
        assert float(average.ema_model.weight.detach()) == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("half_life", [0.03, 0.08, 0.2])
def test_an_average_after_training_is_the_one_kept_during_it(tmp_path, half_life):
    """Of a random walk, by 25 snapshots: a hundredth of what separates it from its neighbours. A
    stored one is exact."""
    steps = 500
    gamma = exponent_of(half_life)
    direct, path = walked(tmp_path, steps, 20, (gamma, exponent(0.05)))
    (true, stored) = (average.ema_model.weight.detach() for average in direct)
    length = half_life * (steps + 1) * BATCH
    made = synthesise(tmp_path, steps * BATCH, length)
    error = float((made.state["weight"] - true).norm())
    assert error < 0.02 * float((true - path[-1]).norm()) and made.off < 0.02
    assert made.half_life == pytest.approx(length, rel=0.01)
    own = (1 - 2 ** (-1 / (exponent(0.05) + 1))) * (steps + 1) * BATCH
    same = synthesise(tmp_path, steps * BATCH, own)
    assert torch.allclose(same.state["weight"], stored, rtol=1e-4, atol=1e-6) and same.off < 1e-6


def test_the_recorded_half_life_is_that_of_the_shares(tmp_path):
    """Also of an average that missed what was wanted: summed step by step, the last steps that make
    up half."""
    t, gamma = np.array([40.0, 40.0, 100.0, 100.0]), np.array([17.0, 7.0, 17.0, 7.0])
    shares, off = solve(t, gamma, 100, exponent_of(0.35))
    assert off > 0.1 and shares.sum() == pytest.approx(1.0)
    fine = np.linspace(0, 100, 1_000_001)
    up_to = sum(s * np.minimum(1, fine / at) ** (g + 1) for s, at, g in zip(shares, t, gamma))
    assert half_life_of(shares, t, gamma) == pytest.approx(
        100 - fine[np.argmax(up_to >= 0.5)], abs=1e-3
    )


def test_the_error_of_the_fit_is_the_distance_of_the_profiles():
    t, gamma = np.array([50.0, 100.0]), np.array([17.0, 7.0])
    wanted = exponent_of(0.2)
    shares, off = solve(t, gamma, 100, wanted)

    def profile(x: float, at: float, g: float) -> float:
        return (g + 1) * x**g / at ** (g + 1) if x <= at else 0.0

    def gap(x: float) -> float:
        found = sum(s * profile(x, at, g) for s, at, g in zip(shares, t, gamma))
        return (found - profile(x, 100, wanted)) ** 2

    area = quad(gap, 0, 100, points=[50], limit=200)[0]
    own = quad(lambda x: profile(x, 100, wanted) ** 2, 0, 100)[0]
    assert off == pytest.approx((area / own) ** 0.5, rel=1e-6)


def test_what_snapshots_cannot_tell_is_refused(tmp_path):
    walked(tmp_path, 100, 25)
    with pytest.raises(UserError, match="come no nearer than .* to such an average"):
        synthesise(tmp_path, 1000, 5.0)
    with pytest.raises(UserError, match="between 0 and 505 images, half of what"):
        synthesise(tmp_path, 1000, 900.0)
    with pytest.raises(UserError, match="no snapshot of its last checkpoint, at 990 images"):
        synthesise(tmp_path, 990, 100.0)
    with pytest.raises(UserError, match="has no snapshots: train it with snapshots.every"):
        synthesise(tmp_path / "other", 1000, 100.0)
    file = sorted((tmp_path / "snapshots").glob("*"))[1]
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: copy it again"):
        synthesise(tmp_path, 1000, 100.0)


def test_a_run_with_snapshots_trains_as_one_without_and_gives_averages(tmp_path):
    """Weights, average and price are the same to the bit; a folder, and weights by name, are the
    same average; its half-life is told."""
    train_tiny(tmp_path / "plain", images=1280)
    train_tiny(tmp_path / "run", images=1280, snapshots={"every": 128})
    plain, run = (load(tmp_path / name) for name in ("plain", "run"))
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), run.model.parameters()))
    assert plain.train_evals == run.train_evals and plain.ema_half_life == run.ema_half_life
    assert len(list((tmp_path / "run" / "snapshots").iterdir())) == 10
    true, _ = write_average(tmp_path / "run", 200, tmp_path / "run-200")
    folder, named = load(tmp_path / "run-200"), load(tmp_path / "run", "half-life 200")
    assert all(
        torch.equal(a, b) for a, b in zip(folder.model.parameters(), named.model.parameters())
    )
    assert folder.ema_half_life == named.ema_half_life == true == pytest.approx(200, rel=0.05)
    assert (folder.ema, named.ema) == ("average", "post-hoc half-life 200")
    assert (
        named.weights == f"half-life {true:.0f} images"
        and named.weights_sha256 != run.weights_sha256
    )
    with pytest.raises(UserError, match="weights = 'half-life': ema, raw, or half-life N"):
        load(tmp_path / "run", "half-life")


def test_snapshots_of_a_run_that_was_stopped_are_those_of_one_that_was_not(tmp_path, monkeypatch):
    """After a checkpoint that lies between two of them."""
    options = {"images": 960, "snapshots": {"every": 128}}
    train_tiny(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save_then_stop(1))
        with pytest.raises(Stopped):
            train_tiny(tmp_path / "stopped", **options)
    assert len(list((tmp_path / "stopped" / "snapshots").iterdir())) == 2
    train_tiny(tmp_path / "stopped", **options)
    whole, stopped = (sorted((tmp_path / n / "snapshots").iterdir()) for n in ("whole", "stopped"))
    assert [file.name for file in whole] == [file.name for file in stopped] and len(whole) == 8
    for one, other in zip(whole, stopped, strict=True):
        (tensors, about), (again, same) = read_tensors(one, ""), read_tensors(other, "")
        assert about == same and tensors.keys() == again.keys()
        assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())


def test_mistakes_of_the_command(tmp_path):
    train_tiny(tmp_path / "run", images=64)
    assert "no snapshots" in refused(tmp_path, "ema", str(tmp_path / "run"), "--half-life", "20")
    assert "no run with a checkpoint" in refused(tmp_path, "ema", "nowhere", "--half-life", "20")
    for wrong in ("nan", "-1", "0", "x", "1e400", ""):
        line = refused(tmp_path, "ema", str(tmp_path / "run"), f"--half-life={wrong}")
        assert "half-life" in line or "no snapshots" in line
    assert "for 2 half-lives" in refused(
        tmp_path, "ema", str(tmp_path / "run"), "--half-life", "20,30", "--out", "x"
    )
