"""Comparing two series: hand-made rows with hand-computed answers, and refusals that name what is in the way."""

from __future__ import annotations

import json
import runpy
import sys

import pytest

from core.errors import UserError
from eval.compare import compare, select, standard_error
from tests.eval.test_pictures import row

A = [row("a", s, fid, fid_std=0.3) for s, fid in [(1, 10.0), (2, 5.0), (4, 3.0)]]
B = [row("b", s, fid, fid_std=0.4) for s, fid in [(8, 1.0), (4, 3.5), (2, 4.0), (1, 11.0)]]


def test_points_by_hand():
    (points,) = compare(A, B)
    assert [p.at for p in points] == [1, 2, 4]  # 8 is not common
    first, second, third = points
    assert (first.difference, first.ratio) == (-1.0, pytest.approx(10 / 11))
    assert first.error == pytest.approx(0.5) and first.z == pytest.approx(-2.0)  # a 3-4-5 triangle
    assert [p.verdict for p in points] == ["a", "b", "none"]
    assert second.z == pytest.approx(2.0) and third.z == pytest.approx(-1.0)
    assert [p.verdict for p in compare(B, A)[0]] == ["b", "a", "none"]


def test_mean_of_sets_has_a_smaller_error():
    assert standard_error(row("a", 1, 10.0, fid_std=0.6, fid_error="4 sets")) == pytest.approx(0.3)
    assert standard_error(row("a", 1, 10.0, fid_std=0.6, fid_error="bootstrap 100")) == 0.6
    (points,) = compare([row("a", 1, 10.0, fid_std=None, fid_error=None)], B)
    assert (points[0].error, points[0].z, points[0].verdict) == (None, None, "unknown")


def test_by_network_evaluations():
    heun = [row("a", s, 9.0, nfe=2.0 * s, sampler="heun") for s in (1, 2, 4)]
    assert [p.at for p in compare(heun, B, by="nfe")[0]] == [2, 4, 8]
    assert [p.b for p in compare(heun, B, by="nfe")[0]] == [4.0, 3.5, 1.0]
    with pytest.raises(UserError, match="no nfe in common"):
        compare([row("a", 3, 9.0)], B, by="nfe")
    with pytest.raises(UserError, match="by = 'sec': steps or nfe"):
        compare(A, B, by="sec")


@pytest.mark.parametrize(
    "field, value", [("n", 1000), ("extractor_sha256", "ee"), ("reference_sha256", "ff"), ("reference", "digits test")]
)
def test_other_protocol_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=rf"differ in {field} \(.* and {value}\)"):
        compare(A, [{**r, field: value} for r in B])


def test_each_common_protocol_is_compared_apart():
    more = [row(name, 1, fid, n=1000, fid_std=1.0) for name, fid in [("a", 7.0), ("b", 3.0)]]
    small, large = compare([*A, more[0]], [*B, more[1]])
    assert len(small) == 3 and [(p.a, p.b) for p in large] == [(7.0, 3.0)]


def test_selection():
    rows = [row("floor", None, 2.0), *A, *[{**r, "sampler": "unipc", "guidance_scale": 2.0} for r in A], *B]
    assert [r["method"] for r in select(rows, "b")] == ["b"] * 4
    assert {r["sampler"] for r in select(rows, "method=a,guidance_scale=2")} == {"unipc"}
    with pytest.raises(UserError, match=r"differ in sampler \(ddim and unipc\): say which, for example a,sampler=unipc"):
        compare(select(rows, "a"), B, names=("a", "b"))
    with pytest.raises(UserError, match="unknown key 'smapler'.*did you mean 'sampler'"):
        select(rows, "a,smapler=ddim")
    with pytest.raises(UserError, match="no row is 'floor'"):
        select(rows, "floor")
    again = {**A[0], "fid": 1.5}
    assert [r["fid"] for r in select([*A, again], "a")] == [1.5, 5.0, 3.0]  # measured again: the last counts


def test_command_line(tmp_path, monkeypatch, capsys):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("".join(json.dumps(r) + "\n" for r in A + B))
    two.write_text("".join(json.dumps({**r, "fid": r["fid"] / 2}) + "\n" for r in A))

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
        try:
            runpy.run_module("scripts.compare", run_name="__main__")
        except SystemExit as stop:
            return stop.code
        return 0

    assert run(one, "--a", "a", "--b", "b") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "FD@449, digits-cnn" in lines[0] and lines[2].split() == "1 10 11 -1 0.5 0.909 -2.0 a is better".split()
    assert lines[4].endswith("within the error")
    assert run(one, two, "--a", "a") == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("+11.8  a (2nd) is better")  # 5 / sqrt(2 * 0.3^2)
    for arguments, words in [((one, "--a", "a"), "--b is missing"), ((tmp_path / "no", "--a", "a", "--b", "b"), "has no rows")]:
        assert run(*arguments) == 2 and words in capsys.readouterr().err
