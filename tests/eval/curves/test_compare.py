"""Comparing two series: hand-made rows with hand-computed answers, and refusals that name what is
in the way."""

from __future__ import annotations

import runpy
import sys

import pytest
import torch
from scipy import stats

from core.errors import UserError
from eval.curves.compare import compare, seeds_words, select, standard_error
from eval.curves.seeds import seedless
from eval.rows import Row
from tests.helpers.rows import changed, row

A = [row("a", s, fid, fid_std=0.3) for s, fid in [(1, 10.0), (2, 5.0), (4, 3.0)]]
B = [row("b", s, fid, fid_std=0.4) for s, fid in [(8, 1.0), (4, 3.5), (2, 4.0), (1, 11.0)]]

PROTOCOL = A[0].protocol


def test_points_by_hand():
    (points,) = compare(A, B).values()
    assert [p.at for p in points] == [1, 2, 4]  # 8 is not common
    first, second, third = points
    assert (first.difference, first.ratio) == (-1.0, pytest.approx(10 / 11))
    assert first.error == pytest.approx(0.5) and first.z == pytest.approx(-2.0)  # a 3-4-5 triangle
    assert [p.verdict for p in points] == ["a", "b", "none"]
    assert second.z == pytest.approx(2.0) and third.z == pytest.approx(-1.0)
    assert [p.verdict for p in compare(B, A)[PROTOCOL]] == ["b", "a", "none"]


def test_mean_of_sets_has_a_smaller_error():
    assert standard_error(row("a", 1, 10.0, fid_std=0.6, fid_error="4 sets")) == pytest.approx(0.3)
    assert standard_error(row("a", 1, 10.0, fid_std=0.6, fid_error="bootstrap 100")) == 0.6
    (points,) = compare([row("a", 1, 10.0, fid_std=None, fid_error=None)], B).values()
    assert (points[0].error, points[0].z, points[0].verdict) == (None, None, "unknown")


def test_errors_of_few_sets_need_more():
    """Two means of 3 sets that do not differ at all are called different no more often than with
    well known errors, in 4.6 % of trials; Welch's test is known to stay somewhat below its level
    with so few."""
    draw = torch.randn(4000, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means, stds = draw.mean(2) + 9, draw.std(2)

    def one(name: str, mean: float, std: float) -> Row:
        return row(name, 1, mean, fid_std=std, fid_error="3 sets")

    found = [
        compare([one("a", *x)], [one("b", *y)])[PROTOCOL][0]
        for x, y in torch.stack([means, stds], 2).tolist()
    ]
    assert sum(p.verdict != "none" for p in found) / len(found) == pytest.approx(0.036, abs=0.010)
    assert (
        sum(abs(p.z) >= 2 for p in found) / len(found) > 0.1
    )  # what a bound of 2 would call different
    alike = compare([one("a", 9.0, 1.0)], [one("b", 9.0, 1.0)])[PROTOCOL][0]
    assert alike.needed == pytest.approx(2.869, abs=1e-3)  # Student's t, 4 degrees of freedom
    assert compare([one("a", 9.0, 1e-9)], B)[PROTOCOL][0].needed == pytest.approx(
        2.0
    )  # the bootstrapped error is all of it


def test_by_network_evaluations():
    heun = [row("a", s, 9.0, nfe=2.0 * s, sampler="heun") for s in (1, 2, 4)]
    assert [p.at for p in compare(heun, B, by="nfe")[PROTOCOL]] == [2, 4, 8]
    assert [p.b for p in compare(heun, B, by="nfe")[PROTOCOL]] == [4.0, 3.5, 1.0]
    with pytest.raises(UserError, match="no nfe in common"):
        compare([row("a", 3, 9.0)], B, by="nfe")
    with pytest.raises(UserError, match="by = 'sec': steps or nfe"):
        compare(A, B, by="sec")


@pytest.mark.parametrize(
    "field, value",
    [
        ("n", 1000),
        ("extractor_sha256", "ee"),
        ("reference_sha256", "ff"),
        ("reference", "digits test"),
    ],
)
def test_other_protocol_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=rf"differ in {field} \(.* and {value}\)"):
        compare(A, [changed(r, **{field: value}) for r in B])


def test_each_common_protocol_is_compared_apart():
    more = [row(name, 1, fid, n=1000, fid_std=1.0) for name, fid in [("a", 7.0), ("b", 3.0)]]
    small, large = compare([*A, more[0]], [*B, more[1]]).values()
    assert len(small) == 3 and [(p.a, p.b) for p in large] == [(7.0, 3.0)]


def test_selection():
    rows = [
        row("floor", None, 2.0),
        *A,
        *[changed(r, sampler="unipc", guidance_scale=2.0) for r in A],
        *B,
    ]
    assert [r.method for r in select(rows, "b")] == ["b"] * 4
    assert {r.sampler for r in select(rows, "method=a,guidance_scale=2")} == {"unipc"}
    with pytest.raises(
        UserError,
        match=r"differ in sampler \(ddim and unipc\): say which, for example a,sampler=unipc",
    ):
        compare(select(rows, "a"), B, names=("a", "b"))
    with pytest.raises(UserError, match="unknown key 'smapler'.*did you mean 'sampler'"):
        select(rows, "a,smapler=ddim")
    with pytest.raises(UserError, match="no row is 'floor'"):
        select(rows, "floor")
    again = changed(A[0], fid=1.5)
    assert [r.fid for r in select([*A, again], "a")] == [
        1.5,
        5.0,
        3.0,
    ]  # measured again: the last counts


def trained(name: str, of: int | None, fid: float, **changes) -> Row:
    """A row of one training seed, in the folder NAME-seedN."""
    run = name if of is None else f"{name}-seed{of}"
    one_of = {"run": run, "config_sha256": run, "weights_sha256": run, "train_seed": of}
    return row(name, 1, fid, fid_std=0.3, **one_of | changes)


def test_training_seeds_of_a_run_are_one_thing():
    """Paired where both have the same seeds, as scipy pairs them; sampled with noise of their own
    or not. In another order it is the same."""
    fids = {"a": [10.0, 14.0, 12.5, 19.0], "b": [11.5, 15.0, 14.5, 20.2]}
    a, b = ([trained(n, s, fid, seed=s) for s, fid in enumerate(fids[n])] for n in "ab")
    (point,) = compare(a, b[::-1])[PROTOCOL]
    expected = stats.ttest_rel(fids["a"], fids["b"])
    assert point.z == pytest.approx(expected.statistic) and point.seeds == (4, 4)
    assert point.difference == pytest.approx(-1.425) and point.verdict == "a"
    assert point.needed == pytest.approx(stats.t.isf(stats.norm.sf(2.0), 3))
    assert "4 of x and 4 of y; the error is that of training" in seeds_words([point], ("x", "y"))
    assert [r.run for r in select(a + b, "run=a")] == [r.run for r in a]  # of all its seeds


def test_other_training_seeds_are_compared_as_independent():
    a = [trained("a", s, fid) for s, fid in [(0, 3.0), (1, 4.0), (2, 5.5)]]
    b = [trained("b", s, fid) for s, fid in [(5, 6.0), (6, 8.0)]]
    (point,) = compare(a, b)[PROTOCOL]
    expected = stats.ttest_ind([3.0, 4.0, 5.5], [6.0, 8.0], equal_var=False)
    assert point.z == pytest.approx(expected.statistic)
    assert point.needed == pytest.approx(stats.t.isf(stats.norm.sf(2.0), expected.df))


def test_one_training_seed_is_said_and_counts_as_before():
    """Beside several, the one that both have."""
    a = [trained("a", s, fid) for s, fid in [(0, 3.0), (1, 4.0)]]
    b = [trained("b", 1, 5.0)]
    (point,) = compare(a, b)[PROTOCOL]
    assert (point.a, point.b, point.seeds) == (4.0, 5.0, (1, 1))
    assert point.error == pytest.approx(0.3 * 2**0.5)
    assert "one training seed compared" in seeds_words([point], ("a", "b"))
    old = compare([trained("a", None, 3.0)], [trained("b", None, 5.0)])[PROTOCOL][0]
    assert old.seeds == (1, 1)


def test_what_differs_in_more_than_the_seed_is_not_one_thing():
    a = [trained("a", s, 3.0 + s) for s in (0, 1)]
    for other, key in (
        (trained("a", 1, 3.0, run="c-seed1"), "run"),  # of another run
        (trained("a", 1, 3.0, ema="half-life 3"), "ema"),
        (trained("a", 1, 3.0, sampler="heun"), "sampler"),
        (trained("a", 1, 3.0, train_images=7), "train_images"),  # of another budget
        (trained("a", None, 3.0, run="a"), "run"),  # of a seed that nobody knows
        (trained("a", 0, 3.0, run="a-seed0", weights_sha256="x"), "weights_sha256"),  # seed twice
    ):
        with pytest.raises(UserError, match=f"differ in {key}"):
            compare([a[0], other], B)
    names = {"flow-seed3": "flow", "flow-3": "flow", "flow_seed_3": "flow", "flow-13": "flow-13",
             "3": "3", "flow": "flow", "flow-seed4": "flow-seed4"}  # fmt: skip
    assert {name: seedless(trained("a", 3, 1.0, run=name)) for name in names} == names


def test_command_line(tmp_path, monkeypatch, capsys):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("".join(r.json_line() + "\n" for r in A + B))
    two.write_text("".join(changed(r, fid=r.fid / 2).json_line() + "\n" for r in A))

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
        try:
            runpy.run_module("scripts.compare", run_name="__main__")
        except SystemExit as stop:
            return stop.code
        return 0

    assert run(one, "--a", "a", "--b", "b") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "FD@449, digits-cnn" in lines[0]
        and " ".join(lines[2].split()) == "1 10 11 -1 0.5 0.909 -2.0 a is better"
    )
    assert lines[4].endswith("within the error")
    assert run(one, "--a", "a", "--b", "b") == 0
    assert capsys.readouterr().err.startswith("one training seed compared")
    mixed = tmp_path / "mixed.jsonl"  # as a sweep that was interrupted and extended leaves it
    order = [(449, 1, 1.0), (1000, 1, 2.0), (449, 2, 3.0)]
    lines = [row(name, steps, fid, n=n) for n, steps, fid in order for name in "ab"]
    mixed.write_text("".join(r.json_line() + "\n" for r in lines))
    assert run(mixed, "--a", "a", "--b", "b") == 0
    words = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert [w for w in words if w[0] != "steps"] == [
        ["FD@449,", "digits-cnn"],
        ["1", "1"],
        ["2", "3"],
        ["FD@1000,", "digits-cnn"],
        ["1", "2"],
    ]
    assert run(one, two, "--a", "a") == 0
    assert (
        capsys.readouterr().out.splitlines()[2].endswith("+11.8  a (2nd) is better")
    )  # 5 / sqrt(2 * 0.3^2)
    for arguments, words in [
        ((one, "--a", "a"), "--b is missing"),
        ((tmp_path / "no", "--a", "a", "--b", "b"), "does not exist"),
    ]:
        assert run(*arguments) == 2 and words in capsys.readouterr().err
