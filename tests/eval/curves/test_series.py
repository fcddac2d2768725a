"""The name of a series: the same everywhere, short, and never that of two."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from eval.curves.series import by_protocol, method_label, point_label, series_label, series_of
from eval.rows import Row
from tests.helpers.rows import changed, row


def names(rows: list[Row]) -> list[str]:
    return [series_label(r, rows) for r in rows]


def test_method_and_sampler_in_words():
    rows = [
        row("ddpm", 4, 2.0),
        row("ddpm", 4, 2.0, sampler="ddim", options={"eta": 0.5}),
        row("ddpm", 4, 2.0, sampler="heun", guidance_scale=2.0),
        row("mine", 4, 2.0, sampler="unipc"),
    ]
    assert names(rows) == [
        "DDPM teacher, ddim",
        "DDPM teacher, ddim eta 0.5",
        "DDPM teacher, heun, guidance 2",
        "mine, unipc",
    ]
    assert point_label(rows[0], rows) == "DDPM teacher, ddim, 4 steps"
    floor = row("floor", None, 1.0, run="digits test")
    assert series_label(floor, rows) == point_label(floor, rows) == "floor: digits test (n = 449)"


def test_a_sampler_goes_without_saying_for_generators_and_where_it_is_the_usual_one():
    gan, student = (row("gan", 1, 2.0, sampler="consistency") for _ in range(2))
    student = row("consistency", 1, 2.0, sampler="consistency")
    assert names([gan, student]) == ["GAN", "consistency distillation"]
    flow = [row("rectified-flow", 1, 2.0, sampler=name) for name in ("euler", "heun")]
    assert names(flow[:1]) == ["rectified flow"]
    assert names(flow) == ["rectified flow, euler", "rectified flow, heun"]
    # with another sampler than the usual one alone, it is said
    assert names(flow[1:]) == ["rectified flow, heun"]
    unusual = changed(gan, sampler="ddim")
    assert names([unusual]) == ["GAN"] and len(set(names([gan, unusual]))) == 2
    # of the teacher it is always said
    assert names([row("ddpm", 1, 2.0)]) == ["DDPM teacher, ddim"]


def test_what_tells_series_apart_is_said_and_nothing_else():
    one = row("ddpm", 4, 2.0)
    for change, words in (
        ({"run": "other"}, "run other"),
        ({"config_sha256": "cafe" * 16}, "run ddpm cafeca"),
        ({"ema": "half-life 5 images"}, "half-life 5 images (cap)"),
        ({"ema": "average", "ema_half_life": 5.2}, "average"),
        ({"threshold": "static"}, "threshold static"),
        ({"grid": "karras"}, "grid karras"),
        ({"seed": 3}, "seed 3"),
    ):
        other = changed(one, **change)
        assert series_label(other, [one, other]) == f"DDPM teacher, ddim, {words}"
        assert series_label(other, [other]) == "DDPM teacher, ddim"
    named = row("DDPM teacher", 4, 2.0, run="ddpm", config_sha256="ddpm")
    assert series_label(named, [one, named]) == "DDPM teacher, ddim, method DDPM teacher"
    assert "grid time" in series_label(one, [one, changed(one, grid="karras")])


def drawn(*values):
    return st.sampled_from(values)


SERIES = st.fixed_dictionaries(
    {
        "method": drawn("ddpm", "DDPM teacher", "gan", "consistency", "mine"),
        "run": drawn("a", "b"),
        "config_sha256": drawn("1" * 64, "2" * 64),
        "ema": drawn("raw", "half-life 5 images"),
        "sampler": drawn("ddim", "consistency", "heun"),
        "guidance_scale": drawn(1.0, 2.0),
        "threshold": drawn("none", "static"),
        "grid": drawn("time", "karras"),
        "seed": drawn(0, 1),
        "options": drawn({}, {"eta": 0.5}),
    }
)


@settings(max_examples=80, deadline=None)
@given(st.lists(SERIES, min_size=2, max_size=8))
def test_no_two_series_share_a_name(drawn_series):
    rows = [changed(row("x", 1, 2.0), **values) for values in drawn_series]
    found = {r.series: series_label(r, rows) for r in rows}
    assert len(set(found.values())) == len(found), found


def test_series_hold_their_points_by_cost():
    rows = [row("ddpm", steps, 2.0) for steps in (4, 1, 2)]
    (points,) = series_of(rows).values()
    assert [r.steps for r in points] == [1, 2, 4] and method_label("nobody's") == "nobody's"
    assert by_protocol([row("floor", None, 1.0)]) == []
