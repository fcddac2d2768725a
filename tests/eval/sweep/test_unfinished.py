"""A point that was interrupted goes on from what is on disk, whatever batches or processes made
it."""

from __future__ import annotations

import pytest
import torch

import eval.sweep.points
from eval.curves_file import read_rows
from eval.features.extractors import make_extractor
from eval.sweep.store import KEPT, UNFINISHED, Part, Store, identity
from lab import measure
from tests.helpers.small_sweep import comparable, config

LONG = {"samplers": ["heun"], "steps": [3]}  # of the sweep that `uninterrupted` made, the last row


@pytest.fixture
def interrupted(run, cache, tmp_path, monkeypatch):
    """(curves file, indices sampled from then on): 30 images in batches of 8, of which 2 were made
    before the kill."""
    monkeypatch.setattr(eval.sweep.points, "PART_SECONDS", 0)
    sample, seen = eval.sweep.points.sample_images, []

    def recorded(model, setting, indices, seed, callback):
        if callback:  # neither the estimate nor warming up
            seen.append(indices.tolist())
            if len(seen) == 3:
                raise KeyboardInterrupt
        return sample(model, setting, indices, seed, callback=callback)

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


def test_times_are_of_both_halves(run, cache, interrupted, tmp_path):
    out, _ = interrupted
    (folder,) = (out.parent / UNFINISHED).iterdir()
    store = Store(tmp_path, (), ())
    store.folders[UNFINISHED] = folder
    for part in store.within(0, 30, [make_extractor("digits-cnn")]):
        store.add(part._replace(seconds=1000.0), UNFINISHED)
    measure(config(run, out, cache, LONG, batch_size=8))
    assert read_rows(out)[-1].seconds_per_image == pytest.approx(2000 / 30, rel=0.01)


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


class Pixels:
    """As much of an extractor as the store asks for."""

    name, sha256 = "pixels", "00"


def part(first: int, count: int, device: str = "cpu", images: int = 0, name=Pixels) -> Part:
    """Samples whose features are their indices."""
    features = {identity(name): torch.arange(first, first + count)[:, None].float()}
    return Part(first, features, torch.full((images, 1), first), count, 1.0, 7, device)


def found(parts: list[Part]) -> list[int]:
    return [int(i) for one in parts for i in one.features[identity(Pixels)][:, 0]]


def test_shares_of_other_processes(tmp_path):
    """What two processes made is of use to one and to three, as far as it lies within their shares
    and not over each other."""
    store = Store(tmp_path, ("point",), ("a", 1))
    for first, count in [(0, 10), (10, 10), (20, 10), (15, 5)]:
        store.add(part(first, count), UNFINISHED)

    def within(first: int, end: int) -> list[int]:
        return found(store.within(first, end, [Pixels]))

    assert within(0, 30) == list(range(30))
    assert within(0, 15) == list(range(10)) and within(15, 30) == list(range(15, 30))
    assert within(5, 19) == []
    assert Store(tmp_path, ("another",), ("a", 1)).within(0, 30, [Pixels]) == []


def test_kept_parts_are_whole_of_one_device_and_extractor(tmp_path):
    """Kept and unfinished parts are the same thing, but only the unfinished ones are forgotten; the
    times of two devices have no sum; images after a gap are not the next ones."""

    class Other(Pixels):
        sha256 = "01"

    store = Store(tmp_path, ("point",), ("a", 1))
    store.add(part(0, 10, images=4), KEPT)
    assert store.whole(20, Pixels) is None and not store.may_hold(20, Pixels)
    store.add(part(10, 10, images=10), UNFINISHED)
    whole = store.whole(20, Pixels)
    assert found([whole]) == list(range(20)) and (whole.forwards, whole.seconds) == (20, 2.0)
    assert store.may_hold(20, Pixels) and len(whole.images) == 4 and whole.memory == 7
    assert store.whole(20, Other) is None and not store.may_hold(20, Other)
    store.forget()
    assert store.whole(20, Pixels) is None and found([store.whole(10, Pixels)]) == list(range(10))
    store.add(part(10, 10, device="NVIDIA A100"), KEPT)
    assert store.whole(20, Pixels) is None
    assert found(store.within(0, 20, [Pixels], "NVIDIA A100")) == list(range(10, 20))
    store.add(part(0, 20, device="NVIDIA A100"), KEPT)  # the longest first
    assert store.whole(20, Pixels).device == "NVIDIA A100"
