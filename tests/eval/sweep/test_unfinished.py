"""A point that was interrupted goes on from what is on disk, whatever batches or processes made
it."""

from __future__ import annotations

import pytest
import torch

import eval.sweep.points
from eval.rows import read_rows
from eval.sweep.machine import device_words
from eval.sweep.unfinished import Part, Unfinished
from lab import measure
from tests.helpers.small_sweep import comparable, config

LONG = {"samplers": ["heun"], "steps": [3]}  # of the sweep that `uninterrupted` made, the last row


@pytest.fixture
def interrupted(run, cache, tmp_path, monkeypatch):
    """(curves file, indices sampled from then on): 30 images in batches of 8, of which 2 were made
    before the kill."""
    monkeypatch.setattr(eval.sweep.points, "PART_SECONDS", 0)
    sample, seen = eval.sweep.points.sample_images, []

    def recorded(loaded, sampler, steps, indices, *rest, **options):
        if "callback" in options:  # neither the estimate nor warming up
            seen.append(indices.tolist())
            if len(seen) == 3:
                raise KeyboardInterrupt
        return sample(loaded, sampler, steps, indices, *rest, **options)

    monkeypatch.setattr(eval.sweep.points, "sample_images", recorded)
    out = tmp_path / "curves.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure(config(run, out, cache, LONG, batch_size=8))
    assert [len(indices) for indices in seen] == [8, 8, 8] and len(read_rows(out)) == 1  # the floor
    return out, seen


@pytest.mark.parametrize("batch_size", [8, 5])
def test_goes_on_after_the_last_part(run, cache, uninterrupted, interrupted, capsys, batch_size):
    out, seen = interrupted
    measure(config(run, out, cache, LONG, batch_size=batch_size))
    assert [i for indices in seen[3:] for i in indices] == list(range(16, 30))
    assert "16 of 30 images are there already" in capsys.readouterr().err
    whole, row = comparable(uninterrupted)[-1], comparable(out)[-1]
    assert row["nfe"] == 5.0 and row["samples"] == whole["samples"]
    for key, value in whole.items():
        assert row[key] == (
            pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
        ), key
    assert (out.parent / row["samples"]).read_bytes() == (
        uninterrupted.parent / row["samples"]
    ).read_bytes()
    assert not (out.parent / "unfinished").exists()


def test_times_are_of_both_halves(run, cache, interrupted):
    out, _ = interrupted
    (folder,) = (out.parent / "unfinished").iterdir()
    parts = Unfinished(folder.parent, [], device_words(torch.device("cpu")))
    parts.folder = folder
    for part in parts.within(0, 30):
        parts.add(part._replace(seconds=1000.0))
    measure(config(run, out, cache, LONG, batch_size=8))
    assert read_rows(out)[-1]["seconds_per_image"] == pytest.approx(2000 / 30, rel=0.01)


@pytest.mark.parametrize("what", ["damaged", "another device", "another seed"])
def test_what_does_not_fit_is_made_again(
    run, cache, uninterrupted, interrupted, monkeypatch, capsys, what
):
    out, seen = interrupted
    if what == "damaged":
        file = min((out.parent / "unfinished").glob("*/*"))
        file.write_bytes(file.read_bytes()[:-3])
    elif what == "another device":
        monkeypatch.setattr(eval.sweep.points, "device_words", lambda _: "NVIDIA A100")
    seed = 1 if what == "another seed" else 0
    measure(config(run, out, cache, LONG, batch_size=8, seed=seed))
    made = sorted(i for indices in seen[3:] for i in indices)
    assert made == ([*range(8), *range(16, 30)] if what == "damaged" else list(range(30)))
    assert what != "damaged" or f"{file} is damaged" in capsys.readouterr().err
    if seed == 0:
        assert comparable(out)[-1]["fid"] == pytest.approx(
            comparable(uninterrupted)[-1]["fid"], rel=1e-4
        )


def test_shares_of_other_processes(tmp_path):
    """What two processes made is of use to one and to three, as far as it lies within their shares
    and not over each other."""
    parts = Unfinished(tmp_path, ["point"], "cpu")
    for first, count in [(0, 10), (10, 10), (20, 10), (15, 5)]:
        parts.add(
            Part(
                first,
                {"pixels": torch.arange(first, first + count)[:, None].float()},
                torch.empty(0),
                count,
                1.0,
            )
        )

    def found(first: int, end: int) -> list[int]:
        return [int(i) for part in parts.within(first, end) for i in part.features["pixels"][:, 0]]

    assert found(0, 30) == list(range(30))
    assert found(0, 15) == list(range(10)) and found(15, 30) == list(range(15, 30))
    assert found(5, 19) == [] and Unfinished(tmp_path, ["another"], "cpu").within(0, 30) == []
