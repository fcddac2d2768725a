"""Tables and plots: rows of another protocol never mix, colours stay with their methods, and every
picture is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import UserError
from core.pictures import save_png, tile
from core.sampling.solvers import SAMPLERS
from eval.curves.pareto import pareto_front
from eval.curves.plots import plot_all
from eval.curves.ranking import ranking, ranking_tables
from eval.curves.ratios import ratio, ratio_tables
from eval.curves.series import by_protocol, series_of
from eval.curves.style import FAMILIES, TEACHER, MethodStyle, look_of, read_styles
from eval.curves.table import markdown_tables, text_tables
from eval.curves.trade_off import class_distance, trade_off_tables
from tests.helpers.rows import changed, row

ROWS = [
    row("floor", None, 2.0),
    *[row("ddpm", s, 500 / s) for s in (1, 10, 1000)],
    *[row("new", s, 50 / s) for s in (1, 2)],
]


def test_other_n_is_another_group():
    more = [
        row("ddpm", 1, 30.0, n=1000),
        row("ddpm", 1, 40.0, extractor="inception-v3-compat", metric="FID"),
    ]
    groups = by_protocol(ROWS + more)
    assert [len(group) for group in groups] == [6, 2, 1]
    assert [r.n for r in groups[1]] == [1000, 449]  # the floor of 449 joins, and says so
    assert "floor: floor (n = 449)" in text_tables(ROWS + more).split("\n\n")[1]
    assert "FID@449, inception-v3-compat" in text_tables(ROWS + more)


def test_a_point_measured_again_replaces_the_old_one(tmp_path):
    """After more training, or with another error bar: every table, the ranking, the ratios and the
    pictures take the last row."""
    again = [
        row("new", 1, 20.0, weights_sha256="of half the training"),
        row("new", 1, 60.0, fid_error="3 sets"),
        row("new", 1, 70.0, fid_std=6.0, weights_sha256="of all of it"),
    ]
    rows = [row("ddpm", 1, 100.0), *again, row("new", 2, 50.0)]
    (group,) = by_protocol(rows)
    assert [(r.method, r.steps, r.fid) for r in group] == [
        ("ddpm", 1, 100.0),
        ("new", 1, 70.0),
        ("new", 2, 50.0),
    ]
    for table in (
        text_tables,
        markdown_tables,
        ranking_tables,
        trade_off_tables,
        lambda rows: ratio_tables(rows, "new"),
    ):
        assert "70.0" in table(rows) or "1.40" in table(rows)
        assert "20.0" not in table(rows) and "60.0" not in table(rows)
    assert [r.fid for r in series_of(group)[again[0].series]] == [70.0, 50.0]


def test_folders_of_one_name_are_told_apart(tmp_path):
    rows = [row("ddpm", 1, 5.0, run="teacher", config_sha256=c * 64) for c in "ab"]
    assert {line.split(" | ")[0] for line in markdown_tables(rows).splitlines()[4:]} == {
        "| DDPM teacher, ddim, run teacher aaaaaa",
        "| DDPM teacher, ddim, run teacher bbbbbb",
    }
    with pytest.raises(UserError, match="several folders of that name"):
        ratio_tables(rows, "teacher")


def test_pictures_of_like_protocols_have_names_of_their_own(tmp_path):
    like = [
        {"n": 1000},
        {"n": 1000, "reference": "digits test"},
        {"n": 1000, "extractor_sha256": "ef" * 32},
    ]
    written = plot_all(
        [row("ddpm", 1, 5.0), *(row("ddpm", 1, 5.0, **changes) for changes in like)],
        tmp_path,
        tmp_path,
    )
    assert len(set(written)) == len(written) and {
        f"curves-digits-digits-cnn-1000{end}.png" for end in ("", "-test", "-train")
    } < {path.name for path in written}


def test_tables():
    text = text_tables(ROWS).splitlines()
    assert text[1].split() == ["steps", "1", "2", "10", "1000"]
    assert text[2].split() == [
        "DDPM",
        "teacher,",
        "ddim",
        "500",
        "±",
        "50",
        "50.0",
        "±",
        "5.0",
        "0.500",
        "±",
        "0.050",
    ]
    assert "| new, ddim | 50.0 ± 5.0 | 25.0 ± 2.5 |  |  |" in markdown_tables(ROWS)
    assert "| 178.6 ± 0.3 |" in markdown_tables([row("new", 1, 178.605, fid_std=0.322)])


def test_a_method_keeps_its_colour():
    styles = read_styles()
    few = look_of("progressive", "ddim", ["progressive"], styles)
    many = look_of("progressive", "ddim", ["a", "b", "consistency", "progressive"], styles)
    assert few == many
    methods = [*styles, *"abcdefghijkl"]  # more without a colour than there are spare ones
    for family in FAMILIES.keys() - {TEACHER}:
        looks = [
            look_of(m, "ddim", methods, styles)
            for m in methods
            if styles.get(m, MethodStyle()).family == family
        ]
        assert len({(look.color, look.dashes) for look in looks}) == len(looks), family
    looks = {look_of("ddpm", s, [], styles)[:3] for s in ("ddim", "ddpm", "heun", "unipc")}
    assert len(looks) == 4
    alone = {look_of("ddpm", s, ["ddpm"], styles).color for s in SAMPLERS}
    assert len(alone) == len(SAMPLERS)  # nothing else needs the colours


def test_pictures_are_written(tmp_path):
    strips = [f"samples/{i}.png" for i in range(len(ROWS) - 1)]
    rows = [ROWS[0], *(changed(r, samples=s) for r, s in zip(ROWS[1:], strips, strict=True))]
    for i, strip in enumerate(strips):
        images = torch.full((16, 1, 8, 8), 40 * i, dtype=torch.uint8)
        save_png(tile(images, columns=16, gap=0), tmp_path / strip)
    (tmp_path / "samples" / "3.png").unlink()  # a missing strip leaves an empty cell
    written = plot_all(rows, tmp_path, tmp_path / "out")
    assert {p.name for p in written} == {
        "curves.png", "curves.svg", "overview.png", "overview.svg", "samples.png",
    }  # fmt: skip
    with Image.open(tmp_path / "out" / "curves.png") as image:
        assert image.width > 1000 and len(set(image.convert("L").resize((200, 120)).tobytes())) > 20
    svg = (tmp_path / "out" / "curves.svg").read_text()
    assert (
        "<!-- digits: FD@449 against digits train" in svg
    )  # matplotlib names the text that it draws as outlines
    assert [len(points) for points in series_of(rows).values()] == [3, 2]


def test_seconds_are_drawn_where_they_are_known(tmp_path):
    rows = [changed(r, seconds_per_image=0.01 * (r.steps or 0), device="one") for r in ROWS]
    assert {"seconds.png", "seconds.svg"} <= {p.name for p in plot_all(rows, tmp_path, tmp_path)}

    def words() -> str:
        return (tmp_path / "seconds.svg").read_text().replace("\N{NO-BREAK SPACE}", " ")

    assert "milliseconds of sampling per image" in words() and "rings: Pareto front" in words()
    rows[-1] = changed(rows[-1], device="another")  # no ranking among times of several machines
    plot_all(rows, tmp_path, tmp_path)
    assert "several devices: times do not compare" in words() and "rings" not in words()


@pytest.mark.parametrize("seed", range(20))
def test_pareto_front_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    points = [
        tuple(map(float, p)) for p in rng.integers(0, 6, size=(rng.integers(1, 25), 2))
    ]  # with many ties

    def beaten(p) -> bool:
        return any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)

    front = pareto_front(points)
    assert sorted(front) == [i for i, p in enumerate(points) if not beaten(p)]
    assert [points[i] for i in front] == sorted(points[i] for i in front)
    assert pareto_front([]) == []


def test_only_a_floor_is_nothing_to_draw(tmp_path):
    with pytest.raises(UserError, match="no measured points"):
        plot_all(ROWS[:1], tmp_path, tmp_path)


def test_trade_off_counts_classes_and_picks_the_ends():
    floor = row(
        "floor",
        None,
        2.0,
        class_histogram=[10, 10, 20],
        precision=0.9,
        recall=0.9,
        seconds_per_image=None,
    )
    given = {"precision": 0.8, "recall": 0.5, "seconds_per_image": 0.002}
    points = [
        row("new", s, f, class_histogram=h, **given)
        for s, f, h in [(1, 9.0, [4, 0, 0]), (2, 3.0, [1, 1, 2]), (4, 4.0, [1, 1, 2])]
    ]
    assert class_distance(points[0], floor) == pytest.approx(
        0.75
    )  # all of one class, which has a quarter of the data
    assert class_distance(points[1], floor) == 0
    assert class_distance(points[0], None) == pytest.approx(2 / 3)
    assert class_distance(row("new", 1, 1.0, class_histogram=None), floor) is None
    lines = trade_off_tables([floor, *points]).splitlines()
    body = [line for line in lines if line.startswith(("| new", "| floor"))]
    assert (
        len(body) == 3
        and "1 step " in body[0]
        and "75.0 %" in body[0]
        and "2 steps" in body[1]
        and "3.00" in body[1]
    )


def test_coverage_is_drawn_where_it_was_measured(tmp_path):
    given = {"precision": 0.8, "recall": 0.5}
    rows = [row("new", s, 3.0 + s, **given) for s in (1, 2)]
    assert "coverage.png" in {p.name for p in plot_all(rows, tmp_path, tmp_path)}
    with Image.open(tmp_path / "coverage.png") as image:
        assert np.asarray(image.convert("L")).std() > 10
    assert "coverage.png" not in {p.name for p in plot_all(ROWS, tmp_path, tmp_path / "without")}


def test_ratios_are_to_the_named_runs_best_with_both_errors():
    table = ratio_tables(ROWS, "ddpm").splitlines()
    assert "0.500 ± 0.050 (DDPM teacher, ddim, 1000 steps)" in table[0]
    assert table[2] == "| steps | 1 | 2 | 10 |"
    assert table[4].startswith("| DDPM teacher, ddim | 1000 ± 141 |  | 100 ± 14 |")
    # against draws: the ratio of two independent normal variables of 2 % spread
    best, other = row("ddpm", 4, 20.0, fid_std=0.4), row("new", 1, 50.0, fid_std=1.0)
    draw = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = (50 + draw[0]) / (20 + 0.4 * draw[1])
    value, std = ratio(other, best)
    assert value == pytest.approx(float(drawn.mean()), rel=2e-3) and std == pytest.approx(
        float(drawn.std()), rel=2e-2
    )
    assert ratio_tables([row("ddpm", 100, 3.0)], "ddpm") == ""  # nothing of few steps to show
    assert ratio(best, best) == (1.0, None) and ratio(row("new", 1, 50.0, fid_std=None), best) == (
        2.5,
        None,
    )
    with pytest.raises(UserError, match="no row is of run 'dpm'.*ddpm"):
        ratio_tables(ROWS, "dpm")


def test_ranking_names_the_best_at_equal_evaluations():
    rows = [
        *ROWS,
        row("ddpm", 1, 500.0, sampler="heun"),  # in one step the same as DDIM: one place for both
        row("third", 1, 60.0, fid_std=8.0),
        row("sets", 1, 40.0, fid_std=5.0, fid_error="4 sets"),
    ]
    found = ranking(by_protocol(rows)[0])
    assert {nfe: [r.method for r in best] for nfe, best in found.items()} == {
        1: ["sets", "new", "third", "ddpm"]
    }
    line = ranking_tables(rows).splitlines()[-1]
    # the error of a mean of 4 sets is half their spread: (50 - 40) / sqrt(5^2 + 2.5^2), (60 - 40) /
    # sqrt(8^2 + 2.5^2)
    assert (
        line
        == "| 1 | sets, ddim 40.0 ± 2.5 | new, ddim 50.0 ± 5.0 (z = 1.8) | third, ddim 60.0 ± 8.0 (z = 2.4 \\*) |"
    )
    assert ranking_tables(ROWS[:3]) == ""
