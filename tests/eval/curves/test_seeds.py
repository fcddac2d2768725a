"""Training seeds of a thing as one series: means, errors and words, in tables and pictures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from core.errors import UserError
from eval.curves.compare import compare, needed_z, standard_error
from eval.curves.plots import plot_all
from eval.curves.ranking import ranking_tables
from eval.curves.ratios import ratio_tables
from eval.curves.seeds import SeedMean, mean_and_error, pooled, seeded, seedless
from eval.curves.series import by_protocol, series_of
from eval.curves.table import curve_cells, markdown_tables
from eval.curves.trade_off import trade_off_cells
from eval.rows import Row
from tests.helpers.rows import row

FIDS = {1: [10.0, 14.0, 12.6], 2: [6.0, 6.5, 7.3]}


def of_seed(name: str, seed: int | None, steps: int, fid: float, **changes) -> Row:
    run = seeded(name, seed or 0)
    own = {"run": run, "config_sha256": run, "weights_sha256": run, "train_seed": seed}
    return row(
        name, steps, fid, **{"seed": seed or 0, "fid_error": "3 sets", "sets": 3} | own | changes
    )


def three(name: str = "flow", **changes) -> list[Row]:
    return [
        of_seed(name, seed, steps, fid, **changes)
        for steps, fids in FIDS.items()
        for seed, fid in enumerate(fids)
    ]


TEACHER = [of_seed("ddpm", 0, steps, 4.0, run="teacher", fid_std=0.3) for steps in (1, 2)]
FLOOR = row("floor", None, 0.5, run="digits test", n=449)


def test_a_thing_with_several_seeds_is_one_series_with_their_mean():
    """The error is that of the mean, as scipy has it."""
    (group,) = by_protocol([*TEACHER, *three(), FLOOR])
    assert [len(points) for points in series_of(group).values()] == [2, 2]
    for mean in group[2:4]:
        fids = FIDS[mean.steps]
        assert mean.run == "flow" and mean.fid == pytest.approx(np.mean(fids))
        assert mean.bar == pytest.approx(stats.sem(fids))
        assert standard_error(mean) == pytest.approx(stats.sem(fids))
        assert [one.fid for one in mean.members] == fids
    assert group[:2] == TEACHER and group[-1] == FLOOR  # as they were


def test_the_table_names_seeds_and_says_which_error_a_number_has():
    (group,) = by_protocol([*TEACHER, *three(), FLOOR])
    assert curve_cells(group) == [
        ["steps", "seeds", "1", "2"],
        ["DDPM teacher, ddim", "1", "4.00 ± 0.30", "4.00 ± 0.30"],
        ["flow, ddim", "3", "12.2 ± 1.2", "6.60 ± 0.38"],
        ["floor: digits test (n = 449)", "", "0.500 ± 0.050", ""],
    ]
    title = markdown_tables(group).splitlines()[0]
    assert title.endswith(
        "± is a standard error over 3 training seeds, of a single seed a standard deviation (3 sets, "
        "bootstrap 20)"
    )


def test_with_one_seed_nothing_changes():
    rows = [*TEACHER, *(r for r in three() if r.train_seed == 0), FLOOR]
    (group,) = by_protocol(rows)
    assert group == rows and not any(isinstance(r, SeedMean) for r in group)
    assert curve_cells(group)[0] == ["steps", "1", "2"]
    assert "± is a standard deviation (3 sets" in markdown_tables(rows)
    old = [r.model_copy(update={"train_seed": None}) for r in three()]  # of earlier versions
    assert by_protocol(old)[0] == old


def test_a_point_that_one_seed_has_alone_keeps_its_own_error():
    """And stays in the curve of the thing."""
    many = of_seed("flow", 1, 64, 5.0, fid_std=0.9)
    (group,) = by_protocol([*three(), many])
    assert len(series_of(group)) == 1
    last = group[-1]
    assert (last.fid, last.bar, last.fid_error) == (5.0, 0.9, "3 sets")
    assert standard_error(last) == pytest.approx(0.9 / 3**0.5)
    assert curve_cells(group)[1] == [
        "flow, ddim",
        "1 to 3",
        "12.2 ± 1.2",
        "6.60 ± 0.38",
        "5.00 ± 0.90",
    ]


def test_what_was_measured_again_counts_once():
    again = of_seed("flow", 1, 1, 20.0)
    (group,) = by_protocol([*three(), again])
    assert group[0].fid == pytest.approx((10.0 + 20.0 + 12.6) / 3)


def test_what_is_no_seed_of_the_same_thing_stays_apart():
    for other in (
        of_seed("flow", 0, 1, 9.0, config_sha256="other"),  # another folder of that name
        of_seed("flow", 3, 1, 9.0, train_images=7),  # trained longer
    ):
        rows = [*three(train_images=5), other]
        assert pooled(rows) == rows
    for changes in ({"ema": "average"}, {"guidance_scale": 2.0}, {"run": "map-seed1"}):
        (group,) = by_protocol([*three(), of_seed("flow", 1, 1, 9.0, **changes)])
        assert len(group) == 3 and sum(isinstance(r, SeedMean) for r in group) == 2


def test_means_are_of_all_that_was_measured():
    """But for what one seed lacks; images of each class are added up."""
    values = [(0.5, 1.0, [1, 2]), (0.7, None, [3, 4])]
    rows = [
        of_seed("flow", seed, 1, 3.0 + seed, precision=precision, kid=kid, class_histogram=counts,
                seconds_per_image=0.1 * (1 + seed), device="cpu")
        for seed, (precision, kid, counts) in enumerate(values)
    ]  # fmt: skip
    (mean,) = pooled(rows)
    assert mean.precision == pytest.approx(0.6) and mean.kid is None
    assert mean.class_histogram == (4, 6) and mean.seconds_per_image == pytest.approx(0.15)
    (group,) = by_protocol(rows)
    assert trade_off_cells(group, group)[1][3] == "3.50 ± 0.50"


def test_ranking_and_ratios_know_how_well_an_error_is_known():
    """With 3 seeds there are 2 degrees of freedom, as with 3 sets."""
    (group,) = by_protocol([*TEACHER, *three()])
    mean = group[2]
    alone = row("x", 1, 12.0, fid_std=1e-9, sets=3)
    free = stats.t.isf(stats.norm.sf(2.0), 2)
    assert needed_z(mean, alone) == pytest.approx(free, rel=1e-6)
    text = ratio_tables([*TEACHER, *three()], "teacher")
    assert "| flow, ddim | 3.05 ± 0.32 | 1.65 ± 0.12 |" in text
    assert "flow, ddim 12.2 ± 1.2 (z = " in ranking_tables([*TEACHER, *three()])
    with pytest.raises(UserError, match="no row is of run 'flow-seed1'"):
        ratio_tables([*TEACHER, *three()], "flow-seed1")


def test_comparisons_have_the_means_of_the_tables():
    other = [r.model_copy(update={"fid": r.fid + 2.0 + r.train_seed}) for r in three("other")]
    points = compare(three(), other)[three()[0].protocol]
    (group,) = by_protocol(three())
    assert [p.a for p in points] == pytest.approx([r.fid for r in group])
    assert [p.error for p in points] == pytest.approx([stats.sem([2.0, 3.0, 4.0])] * 2)


def test_names_of_seeds_are_read_as_they_are_written():
    for seed in (0, 1, 12):
        assert seedless(of_seed("flow-map", seed, 1, 1.0)) == "flow-map"
    assert mean_and_error([3.0]) == (3.0, None)


def test_pictures_are_of_means(tmp_path, monkeypatch):
    """One line for three seeds, with the error of the mean."""
    from matplotlib.axes import Axes

    bars = []
    draw = Axes.errorbar

    def noted(self, x, y, yerr=None, **options):
        bars.append((list(y), yerr))
        return draw(self, x, y, yerr=yerr, **options)

    monkeypatch.setattr(Axes, "errorbar", noted)
    files = plot_all(three(), tmp_path, tmp_path)
    assert (tmp_path / "curves.png") in files and len(bars) == 1
    y, yerr = bars[0]
    assert y == pytest.approx([np.mean(f) for f in FIDS.values()])
    assert yerr[1] == pytest.approx([stats.sem(f) for f in FIDS.values()])
    words = (tmp_path / "curves.svg").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "±1 standard error over 3 training seeds" in words
