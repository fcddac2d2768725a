"""The search for times finds the minimum of distances whose minimum is known, and the grids it
names are sampled as they say."""

from __future__ import annotations

import pytest
import torch

from core.diffusion.grids import given_grid, make_grid
from core.diffusion.paths import make_path
from core.errors import UserError
from eval.best_times import search_times
from tests.helpers.command_lines import run_script
from tests.helpers.tiny import train_tiny

KNOWN = (0.83, 0.41, 0.12)


def test_search_finds_the_known_times():
    calls = []

    def distance(times: tuple[float, ...]) -> float:
        calls.append(times)
        assert all(a > b for a, b in zip((1, *times), (*times, 0), strict=True))
        return sum((a - b) ** 2 for a, b in zip(times, KNOWN, strict=True))

    times, value = search_times(distance, (0.75, 0.5, 0.25), rounds=5, tolerance=1e-3)
    assert times == pytest.approx(KNOWN, abs=2e-3)
    assert value == distance(times) and len(set(calls[:-1])) == len(calls) - 1


def test_search_never_ends_above_its_start():
    assert search_times(lambda times: -float(times == (0.5,)), (0.5,)) == ((0.5,), -1.0)


def test_grid_of_given_times():
    path = make_path("vp-cosine")
    assert given_grid((0.75, 0.4)) == "at:0.75,0.4"
    assert make_grid("at:0.75,0.4", path, 3).tolist() == [1, 0.75, 0.4, 0]
    assert make_grid(given_grid(()), path, 1).tolist() == [1, 0]
    assert make_grid("at:0.5", path, 2, discrete_steps=4).tolist() == [1, 0.5, 0]
    for name, steps, discrete, words in [
        ("at:0.5", 3, None, "give 2 decreasing times"),
        ("at:0.4,0.5", 3, None, "give 2 decreasing times"),
        ("at:1.5", 2, None, "give 1 decreasing times"),
        ("at:nan", 2, None, "give 1 decreasing times"),
        ("at:x", 2, None, "give times with commas"),
        ("at:0.4", 2, 4, "multiples of 1 / 4"),
    ]:
        with pytest.raises(UserError, match=words):
            make_grid(name, path, steps, discrete)


def test_renoising_stops_at_a_quarter():
    path = make_path("vp-cosine")
    for steps in (1, 2, 3, 4):
        assert torch.allclose(make_grid("renoise", path, steps), make_grid("time", path, steps))
    times = make_grid("renoise", path, 16)
    assert float(times[-2]) == 0.25
    torch.testing.assert_close(times[:-1].diff(), torch.full((15,), -0.05, dtype=torch.float64))


def test_command(tmp_path, capsys):
    train_tiny(tmp_path / "run", images=320)
    given = ["times", tmp_path / "run", "--extractor", "digits-cnn", "--n", 20, "--rounds", 1]
    given += ["--tolerance", 0.4, "--sampler", "consistency"]
    code, errors = run_script(*given, "--steps", 3)
    assert code == 0, errors
    out = capsys.readouterr().out
    assert "--sampler consistency --steps 3 --grid at:" in out and "on fresh noise" in out
    code, errors = run_script(*given, "--steps", 1)
    assert code == 2 and "no times to search for" in errors
