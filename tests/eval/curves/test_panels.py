"""Panels by family: what is drawn where, and names that cover neither points nor each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.text import Text

from core.errors import UserError
from eval.curves import coverage, distances, overview
from eval.curves.labels import Curve, place_labels
from eval.curves.panels import BEST, GREY
from eval.curves.plots import plot_all
from eval.curves.series import by_protocol
from eval.curves.style import read_styles
from eval.curves_file import read_measured
from tests.helpers.rows import changed, row

ROOT = Path(__file__).resolve().parents[3]
TEACHER = [
    *[row("ddpm", s, f) for s, f in [(1, 500.0), (10, 50.0), (1000, 60.0)]],
    *[row("ddpm", s, f, sampler="heun", nfe=2.0 * s - 1) for s, f in [(2, 90.0), (8, 55.0)]],
]
STUDENTS = [
    *[row("progressive", s, f) for s, f in [(1, 80.0), (2, 45.0), (4, 46.0)]],
    *[row("consistency", s, f, sampler="consistency") for s, f in [(1, 70.0), (2, 50.0)]],
]
OTHERS = [row("vae", 1, 120.0, sampler="consistency"), row("a-new-method", 1, 65.0)]
FLOOR = row("floor", None, 30.0)


@pytest.fixture
def drawn(monkeypatch):
    """drawn(plot, rows, ...): the figure that a plot function would write."""

    def draw(plot, rows, *arguments):
        kept = []
        for module in (coverage, distances, overview):
            monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure) or [path])
        plot(rows, Path("unused.png"), *arguments)
        kept[0].draw_without_rendering()
        return kept[0]

    return draw


def _points(line) -> list[tuple[float, float]]:
    return [tuple(map(float, point)) for point in np.column_stack(line.get_data())]


def _greys(axes) -> list[list[tuple[float, float]]]:
    return [_points(line) for line in axes.lines if to_hex(line.get_color()) == GREY.lower()]


def _words(axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


def test_each_family_has_a_panel_with_the_best_of_the_teacher(drawn):
    figure = drawn(distances.plot_curves, [*OTHERS, *STUDENTS, *TEACHER, FLOOR])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "solvers of the teacher: DDPM teacher",
        "students of the teacher",
        "generators of another kind: VAE",
        "other methods: a-new-method",
    ]
    # 15 evaluations (55) and 1000 (60) buy nothing that 10 (50) have not bought
    known = [(1.0, 500.0), (3.0, 90.0), (10.0, 50.0), (1000.0, 50.0)]
    for axes in figure.axes:
        assert _greys(axes) == [known]
        assert axes.get_xlim() == figure.axes[0].get_xlim() and axes.get_xscale() == "log"
        assert axes.get_ylim() == figure.axes[0].get_ylim() and axes.get_yscale() == "log"
        dashed = [line.get_ydata() for line in axes.lines if line.get_linestyle() == "--"]
        assert [30.0, 30.0] in [list(y) for y in dashed]
    teacher, students, vae, new = figure.axes
    assert _words(teacher) == {"ddim", "heun"}
    assert _words(students) == {"progressive distillation", "consistency distillation", BEST}
    # a panel of one method says the method in its title, and not beside the curve
    assert _words(vae) == {"VAE", BEST} and _words(new) == {"ddim", BEST, "floor: floor"}
    drawn_points = [_points(line) for line in students.lines]
    assert [(1.0, 80.0), (2.0, 45.0), (4.0, 46.0)] in drawn_points
    assert not any((1.0, 120.0) in points for points in drawn_points)


def test_rings_are_the_front_over_all_panels(drawn):
    figure = drawn(distances.plot_curves, [*TEACHER, *STUDENTS, *OTHERS])
    rings = [
        [tuple(p) for c in axes.collections[-1:] for p in c.get_offsets()] for axes in figure.axes
    ]
    assert rings == [[], [(2.0, 45.0)], [], [(1.0, 65.0)]]


def test_a_family_alone_is_one_panel_without_a_reference(drawn):
    (axes,) = drawn(distances.plot_curves, TEACHER).axes
    assert _greys(axes) == [] and _words(axes) == {"ddim", "heun"}
    assert axes.get_title().startswith("digits, DDPM teacher: FD@449")
    steps = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert [_points(line) for line in steps] == [[(1.0, 500.0), (3.0, 90.0), (10.0, 50.0)]]


def test_no_reference_without_a_teacher_or_among_times_of_several_devices(drawn):
    figure = drawn(distances.plot_curves, [*STUDENTS, *OTHERS])
    assert len(figure.axes) == 4 and [_greys(axes) for axes in figure.axes[:3]] == [[]] * 3
    assert not figure.axes[3].get_visible()
    timed = [changed(r, seconds_per_image=0.01 * r.nfe, device="one") for r in TEACHER + STUDENTS]
    figure = drawn(distances.plot_curves, timed, "seconds")
    assert [len(_greys(axes)) for axes in figure.axes] == [1, 1]
    assert _greys(figure.axes[1])[0][0] == pytest.approx((10.0, 500.0))  # milliseconds
    timed[-1] = changed(timed[-1], device="another")
    figure = drawn(distances.plot_curves, timed, "seconds")
    assert [len(_greys(axes)) for axes in figure.axes] == [0, 0]


def test_overview_joins_the_best_of_each_family_and_names_the_methods_that_make_it(drawn):
    (axes,) = drawn(overview.plot_overview, [*TEACHER, *STUDENTS, *OTHERS]).axes
    thick = {line.get_label(): _points(line) for line in axes.lines if line.get_linewidth() > 2}
    assert thick == {
        "solvers of the teacher": [(1.0, 500.0), (3.0, 90.0), (10.0, 50.0)],
        "students of the teacher": [(1.0, 70.0), (2.0, 45.0)],
        "generators of another kind": [(1.0, 120.0)],
        "other methods": [(1.0, 65.0)],
    }
    assert sorted(text.get_text() for text in axes.texts) == [
        "DDPM teacher",
        "VAE",
        "a-new-method",
        "consistency distillation",
        "progressive distillation",
    ]
    # each name belongs to a point that its method has won
    at = {text.get_text(): tuple(map(float, text.xy)) for text in axes.texts}
    assert at["consistency distillation"] == (1.0, 70.0)
    assert at["progressive distillation"] == (2.0, 45.0)


def test_no_overview_of_one_family(tmp_path):
    assert "overview.png" in {p.name for p in plot_all(TEACHER + STUDENTS, tmp_path, tmp_path)}
    assert "overview.png" not in {p.name for p in plot_all(TEACHER, tmp_path, tmp_path / "one")}


def _crowd() -> list:
    """38 series in 5 families: the published ones, some of them again under other names."""
    rows = read_measured(ROOT / "results/fashion_mnist/curves.jsonl")
    rows = [r for r in rows if r.n == 10000 and r.extractor == "fashion-cnn"]
    solvers = read_measured(ROOT / "results/fashion_mnist/solvers/curves.jsonl")
    rows += [r for r in solvers if not r.is_floor]
    more = []
    for i in range(5):
        for r in rows:
            again = {"fid": r.fid * 0.8 ** (i + 1), "config_sha256": f"{i}"}
            if r.method in ("progressive", "reflow", "gan"):
                more.append(changed(r, run=f"{r.run} {i}", **again))
            if r.method == "consistency" and i < 4:
                more.append(changed(r, method=f"new-{i}", run=f"new-{i}", **again))
    return rows + more


@pytest.mark.parametrize("file", ["digits", "fashion_mnist", "fashion_mnist/solvers", "crowd"])
@pytest.mark.parametrize("plot", [distances.plot_curves, overview.plot_overview])
def test_names_cover_neither_points_nor_each_other_and_stay_in_their_panel(drawn, file, plot):
    rows = _crowd() if file == "crowd" else read_measured(ROOT / "results" / file / "curves.jsonl")
    figure = drawn(plot, by_protocol(rows)[0])
    renderer = figure.canvas.get_renderer()
    texts = 0
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]  # without lines
        frame = axes.get_window_extent(renderer)
        for i, box in enumerate(boxes):
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1, axes.texts[i].get_text()
            assert frame.y0 <= box.y0 and box.y1 <= frame.y1, axes.texts[i].get_text()
            for j in range(i):
                words = axes.texts[i].get_text(), axes.texts[j].get_text()
                assert not box.overlaps(boxes[j]), words
        for line in axes.lines:
            if line.get_marker() in ("None", "none", "", None, "_", ".", 2, 3):
                continue  # floors, caps of error bars, and the overview's thin series
            if to_hex(line.get_color()) == GREY.lower():
                continue
            for x, y in axes.transData.transform(line.get_xydata()):
                for text, box in zip(axes.texts, boxes):
                    assert not box.contains(x, y), text.get_text()
        texts += len(boxes)
    if plot is distances.plot_curves and file == "crowd":
        assert texts > 35


def _name_of(first: Curve, *others: Curve) -> tuple:
    """Axes of 600 by 400 pixels and units, and the box of the first curve's name in them."""
    figure = pyplot.figure(figsize=(6, 4), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 600), ylim=(0, 400))
    place_labels(axes, [first, *others])
    figure.draw_without_rendering()
    (text,) = [text for text in axes.texts if text.get_text() == first.words]
    pyplot.close(figure)
    return text, Text.get_window_extent(text)


def _at(x, y, words: str = "") -> Curve:
    return Curve(np.array(x, dtype=float), np.array(y, dtype=float), words, "black")


def test_a_name_stands_beside_its_point_and_keeps_off_a_line():
    point = _at([300], [200], "a name")
    _, box = _name_of(point)
    assert 0 < box.x0 - 300 < 15 and abs((box.y0 + box.y1) / 2 - 200) < 3
    _, box = _name_of(point, _at([305, 600], [200, 200]))
    assert box.y0 > 200 or box.y1 < 200 or box.x1 < 300


def test_a_name_covers_lines_rather_than_points():
    """The only stripe without lines is full of another curve's points."""
    lines = [_at([0, 600], [200 + s * k] * 2) for k in range(12, 200, 4) for s in (1, -1)]
    other = _at(range(320, 600, 30), [200] * 10, "other")
    _, box = _name_of(_at([300], [200], "a name"), *lines, other)
    assert not any(box.contains(x, 200) for x in range(320, 600, 30))
    assert any(box.y0 < line.y[0] < box.y1 for line in lines)
    _, box = _name_of(_at([300], [200], "a name"), *lines)
    assert not any(box.y0 < line.y[0] < box.y1 for line in lines)


def test_a_name_is_nearer_to_its_own_line():
    x, fine = np.linspace(150, 400, 5), np.linspace(150, 400, 1000)
    rising, falling = _at(x, x - 100, "rising"), _at(x, 450 - x, "falling")
    for own, other in ((rising, falling), (falling, rising)):
        _, box = _name_of(own, other)
        middle = [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]
        gaps = [np.hypot(fine - middle[0], y - middle[1]).min() for y in (fine - 100, 450 - fine)]
        assert (gaps[0] < gaps[1]) == (own is rising)


def test_a_name_is_not_tied_to_a_point_that_others_share():
    """Solvers that are the same in one step: the last point is everybody's."""
    first = _at([100, 300], [300, 200], "first")
    others = [_at([100 + 40 * i, 300], [100, 200], f"{i}") for i in range(4)]
    text, _ = _name_of(first, *others)
    assert tuple(text.xy) == (100, 300)


def test_a_family_that_there_is_not_is_refused(tmp_path):
    file = tmp_path / "style.yaml"
    file.write_text("new: {family: studnets}\n", encoding="utf-8")
    with pytest.raises(UserError, match="new.*family"):
        read_styles(file)
