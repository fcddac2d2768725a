"""Comparing two series: hand-made rows with hand-computed answers, and refusals that name what is
in the way."""

from __future__ import annotations

import runpy
import sys

import pytest
import torch

from core.errors import UserError
from eval.curves.compare import compare, select, standard_error
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
