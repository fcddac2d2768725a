"""What a sweep does besides measuring: features kept for later, batches that fit into memory, one
writer of a file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval.sweep.points
from core.errors import UserError
from eval.curves_file import only_writer, read_rows
from lab import measure
from tests.helpers.rows import changed
from tests.helpers.small_sweep import comparable, config


def test_kept_features_give_the_rows_without_sampling(
    run, cache, uninterrupted, tmp_path, monkeypatch
):
    first = tmp_path / "first" / "curves.jsonl"
    measure(config(run, first, cache, keep_features=True))
    files = sorted((first.parent / "features").iterdir())
    assert len(files) == 4 and comparable(first) == comparable(uninterrupted)

    # everything again, and with another error bar, from the features alone
    def sampled(*_, **__):
        raise AssertionError("it sampled")

    monkeypatch.setattr(eval.sweep.points, "sample_images", sampled)
    rows = read_rows(first)
    first.unlink()
    again = measure(config(run, first, cache))
    assert [r.seconds_per_image for r in read_rows(first)] == [r.seconds_per_image for r in rows]
    assert comparable(first) == comparable(uninterrupted)
    more = measure(config(run, first, cache, bootstrap=8))
    assert [r.fid for r in more] == [r.fid for r in again]
    assert all(r.fid_error == "stratified bootstrap 8" and r.resamples == 8 for r in more)

    # other weights, seed or n are other samples
    with pytest.raises(AssertionError, match="it sampled"):
        measure(config(run, first, cache, seed=1))
    with pytest.raises(AssertionError, match="it sampled"):
        measure(config(run, first, cache, n=20))


def test_kept_features_complete_rows(run, cache, tmp_path, monkeypatch, capsys):
    """Another metric: rows whose features were kept get it without sampling, the others stay and
    are counted."""
    out, entry = tmp_path / "curves.jsonl", {"samplers": ["ddim"], "steps": [1, 2]}
    measure(config(run, out, cache, entry, n=280, keep_features=True))
    (of_two_steps,) = (tmp_path / "features").glob("*-2-*")
    shutil.rmtree(of_two_steps)
    before = read_rows(out)
    monkeypatch.setattr(
        eval.sweep.points, "sample_images", lambda *_, **__: pytest.fail("it sampled")
    )
    rows = measure(config(run, out, cache, entry, n=280, extrapolate=3))
    assert "1 of 2 points to measure, 1 from kept features" in (said := capsys.readouterr().err)
    assert "1 measured rows lack a metric" in said
    one, two = (row for row in rows if row.sampler)
    assert one.fid_infinity == pytest.approx(one.fid, rel=0.01) and two.fid_infinity is None
    assert one == changed(before[1], fid_infinity=one.fid_infinity) and two == before[2]
    assert (
        measure(config(run, out, cache, entry, n=280, extrapolate=3)) == rows
        and len(read_rows(out)) == 4
    )


def test_compiling_is_not_timed(run, cache, tmp_path, monkeypatch):
    """Both sizes of batches, 30 = 16 + 14, have been through the network before the clock
    starts."""
    sample, seen = eval.sweep.points.sample_images, []

    def recorded(model, setting, indices, seed, callback=None):
        seen.append((len(indices), callback is not None))
        return sample(model, setting, indices, seed, callback=callback)

    monkeypatch.setattr(eval.sweep.points, "sample_images", recorded)
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    measure(
        config(
            run,
            tmp_path / "curves.jsonl",
            cache,
            {"samplers": ["ddim"], "steps": [1]},
            compile=True,
        )
    )
    timed = seen.index((16, True))
    assert {size for size, _ in seen[:timed]} == {16, 14} and seen[timed:] == [
        (16, True),
        (14, True),
    ]


def test_damaged_features_are_sampled_again(run, cache, uninterrupted, tmp_path, capsys):
    out = tmp_path / "curves.jsonl"
    measure(config(run, out, cache, keep_features=True))
    file = min((tmp_path / "features").glob("*/*"))
    file.write_bytes(file.read_bytes()[:-7])
    out.unlink()
    measure(config(run, out, cache))
    assert f"{file} is damaged" in capsys.readouterr().err
    assert comparable(out) == comparable(uninterrupted)


def test_batches_shrink_until_they_fit(run, cache, uninterrupted, tmp_path, monkeypatch, capsys):
    sample, tried = eval.sweep.points.sample_images, []

    def small_machine(model, setting, indices, *rest, **options):
        tried.append(len(indices))
        if len(indices) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return sample(model, setting, indices, *rest, **options)

    monkeypatch.setattr(eval.sweep.points, "sample_images", small_machine)
    out = tmp_path / "curves.jsonl"
    measure(config(run, out, cache))
    for got, expected in zip(
        comparable(out), comparable(uninterrupted), strict=True
    ):  # 30 images of 4 a batch, or of 16
        for key, value in expected.items():
            assert got[key] == (
                pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            ), key
    assert [size for size in tried if size > 5] == [
        16,
        8,
    ]  # found once, by the estimate, and kept for all points
    assert "going on with batches of 4" in capsys.readouterr().err


@pytest.mark.parametrize("late", [False, True])
def test_no_memory_for_one_image_is_said(run, cache, tmp_path, monkeypatch, late):
    sample = eval.sweep.points.sample_images

    def no_machine(model, setting, indices, *rest, callback):
        if callback or not late:  # in the estimate, or not before the point itself
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return sample(model, setting, indices, *rest, callback=callback)

    monkeypatch.setattr(eval.sweep.points, "sample_images", no_machine)
    with pytest.raises(UserError, match="memory does not suffice for a single image"):
        measure(config(run, tmp_path / "curves.jsonl", cache))


def test_other_errors_are_not_taken_for_memory(run, cache, tmp_path, monkeypatch):
    def broken(*_, **options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(eval.sweep.points.PointSampler, "_sample_share", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        measure(config(run, tmp_path / "curves.jsonl", cache))


def test_a_second_sweep_on_the_same_file_is_refused(run, cache, tmp_path):
    """Held by another process, which is what a lock is for."""
    out = tmp_path / "curves.jsonl"
    hold = (
        "import sys, pathlib; from eval.curves_file import only_writer\n"
        "with only_writer(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(out)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another sweep is writing"):
            measure(config(run, out, cache))
        assert not out.exists()
        other.kill()
    with only_writer(out):  # a killed holder holds nothing
        pass
