"""Tables of synthetic rows with planted effects: what they say, in words."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from eval.ablation.cells import Cell, Note, Trial
from eval.ablation.config import StudyConfig
from eval.ablation.effects import Effect, estimate
from eval.ablation.plots import plot_axes
from eval.ablation.results import Study, figures_of
from eval.ablation.table import effects_of, table
from eval.ablation.verdict import p_words, signed, verdicts
from tests.helpers.rows import changed, row

SEEDS = (0, 1, 2, 3, 4)
SHARED = (-3.0, 1.0, 4.0, -2.0, 0.0)  # standard deviation 7.5 ** 0.5


def study(tmp_path, truth: dict, seeds=SEEDS, notes: dict | None = None, **changes) -> Study:
    """A study of method.weight (uniform, output) by method.distance (l1, l2); truth: FD by levels
    and steps. Noise of a seed is SHARED, that of one training 0.1; each figure is of 3 sets."""
    values = {
        "question": "Which weight?",
        "axes": {"method.weight": ["uniform", "output"], "method.distance": ["l1", "l2"]},
        "seeds": list(seeds),
        "sweep": {"extractor": "digits-cnn", "n": 300, "steps": [1, 4]},
    }
    config = StudyConfig.model_validate_json(json.dumps(values | changes))
    rng = np.random.default_rng(1)
    cells = [Cell(levels, {}, f"m-{'-'.join(levels)}") for levels in truth]
    trials, found = [], []
    for seed in seeds:
        for cell in cells:
            folder = tmp_path / f"{cell.name}-seed{seed}"
            sweep = config.sweep.of_run(folder, seed)
            trials.append(Trial(cell, seed, folder, tmp_path / "note.json", sweep))
            rows = tuple(
                row(
                    "m",
                    steps,
                    fid + SHARED[seed] + 0.1 * rng.normal(),
                    run=folder.name,
                    train_seed=seed,
                    fid_std=0.3,
                    fid_error="3 sets",
                    weights_sha256=folder.name,
                )
                for steps, fid in truth[cell.levels].items()
            )
            found.append((notes or {}).get((cell.levels, seed), Note(rows)))
    return Study("weights", config, cells, trials, found)


U1, U2, O1, O2 = ("uniform", "l1"), ("uniform", "l2"), ("output", "l1"), ("output", "l2")
ADDITIVE = {U1: {1: 42, 4: 20}, U2: {1: 42, 4: 20}, O1: {1: 30, 4: 20}, O2: {1: 30, 4: 20}}
CROSSED = {U1: {1: 42, 4: 20}, U2: {1: 30, 4: 20}, O1: {1: 30, 4: 20}, O2: {1: 30, 4: 20}}


def said(one: Study) -> list[str]:
    mains, both = effects_of(figures_of(one))
    return [*verdicts(mains), *verdicts(both)]


def test_verdicts_say_which_is_worse_where_and_by_how_much(tmp_path):
    weight, distance, both = said(study(tmp_path, ADDITIVE))
    start = r"method\.weight: uniform is worse than output at 1 step: \+1[12]\.\d+ ± 0\.0\d+, "
    assert re.match(start, weight)
    assert weight.endswith("p < 0.001; no difference at 4 steps beyond the error")
    assert distance == (
        "method.distance: no difference between l1 and l2 at 1 step and 4 steps beyond the error"
    )
    assert both == (
        "method.weight by method.distance, uniform − output, l1 and l2: no interaction at 1 step "
        "and 4 steps beyond the error"
    )


def test_an_interaction_is_put_into_words(tmp_path):
    *_, both = said(study(tmp_path, CROSSED))
    assert re.search(r"the difference is higher with l1 than with l2 at 1 step: \+1[12]\.", both)
    assert both.endswith("no interaction at 4 steps beyond the error")


def test_better_is_said_where_the_first_is_lower():
    effect = Effect("1 step", "A", "x", "y", None, (0, 1), True, estimate(np.array([-2.0, -2.1])))
    one = replace(effect, adjusted=0.004)
    assert verdicts([one]) == ["A: x is better than y at 1 step: -2.050 ± 0.050, p = 0.004"]
    two = replace(one, point="2 steps")
    four = replace(one, point="4 steps", estimate=estimate(np.array([3.0, 3.1])))
    assert verdicts([one, two, four]) == [
        "A: x is better than y at 1 step: -2.050 ± 0.050, p = 0.004; at 2 steps: -2.050 ± 0.050, "
        "p = 0.004; x is worse than y at 4 steps: +3.050 ± 0.050, p = 0.004"
    ]


def test_the_page_holds_all_of_it(tmp_path):
    page = table(study(tmp_path, ADDITIVE), [tmp_path / "axis.png"])
    assert "Which weight?" in page and "20 of 20 trainings done" in page
    cells = page.split("## Cells")[1].split("##")[0]
    assert "| uniform | l1 | m-uniform-l1 | 5 | 4" in cells and "±" in cells
    effects = page.split("## Effects")[1].split("##")[0]
    assert re.search(r"\| method.weight \| uniform − output \| 1 step \| \+1[12]\.\d+ ± 0", effects)
    assert "| 0 1 2 3 4 |" in effects and "< 0.001" in effects
    assert "| method.weight | uniform − output | method.distance: l1 − l2 |" in page
    variance = page.split("## Variance")[1]
    (line,) = [line for line in variance.splitlines() if line.startswith("| 1 step")]
    _, _, seed, samples, share, _ = [word.strip() for word in line.split("|")]
    assert float(samples) == pytest.approx(0.3 / 3**0.5, rel=0.01)  # the error of a mean of 3 sets
    assert float(seed) == pytest.approx(7.5**0.5, rel=0.05) and int(share[:-1]) > 95
    assert "3 sets" in variance and "![axis](axis.png)" in page


def test_one_seed_allows_no_claim(tmp_path):
    page = table(study(tmp_path, ADDITIVE, seeds=(0,)))
    assert re.search(r"one seed allows no claim \(uniform minus output: \+1[12][.\d]* at 1", page)
    assert "training seed 0: 4 of 4" in page
    assert "allows no claim. Give seeds" in page and "p =" not in page and "p <" not in page
    assert "## Variance" not in page


def test_failures_are_rows_and_effects_are_of_what_is_left(tmp_path):
    notes = {
        (O2, 1): Note(failed=f"{tmp_path / 'm-output-l2-seed1'}: NaN at 64 images", diverged=True),
        (U1, 2): Note(failed="out of memory"),
        (U2, 3): None,
    }
    one = study(tmp_path, ADDITIVE, notes=notes)
    one.cells.append(Cell(("uniform", "l3"), {}, None, "x.yaml: l3 is no distance"))
    page = table(one)
    problems = page.split("## Failed")[1].split("##")[0]
    assert (
        "| method.weight=output, method.distance=l2 | 1 | diverged: NaN at 64 images |" in problems
    )
    assert "| method.weight=uniform, method.distance=l1 | 2 | failed: out of memory |" in problems
    assert "| method.weight=uniform, method.distance=l2 | 3 | not done |" in problems
    assert "method.distance=l3 | all | impossible: x.yaml: l3 is no distance |" in problems
    assert "training seeds 0 and 4)" in page and "17 of" in page
    assert "| impossible | 0 | - | - |" in page


def test_names_do_not_break_the_page(tmp_path):
    truth = {(f"a|{'<b>'}", "l1"): {1: 3.0}, ("b", "l1"): {1: 4.0}}
    axes = {"method.weight": ["a|<b>", "b"], "method.distance": ["l1", "l2"]}
    page = table(study(tmp_path, truth, axes=axes))
    assert "a\\|\\<b\\>" in page


def test_numbers_are_as_long_as_their_error():
    assert [signed(12.138, 3.04), signed(-0.12345, 0.0123), signed(345.6, 22)] == [
        "+12.1 ± 3.0",
        "-0.123 ± 0.012",
        "+346 ± 22",
    ]
    assert [p_words(0.0042), p_words(1e-9), p_words(1.0)] == ["p = 0.0042", "p < 0.001", "p = 1"]


def test_a_picture_for_each_axis(tmp_path):
    from PIL import Image

    found = plot_axes(study(tmp_path, ADDITIVE), tmp_path)
    assert [file.name for file in found] == ["axis-method.weight.png", "axis-method.distance.png"]
    one, two = (np.asarray(Image.open(file).convert("L")) for file in found)
    assert (one < 128).any() and one.shape == two.shape and (one != two).any()


def test_panels_are_named_by_what_they_measure(tmp_path, monkeypatch):
    """Of two extractors, each at its first panel."""
    from matplotlib.axes import Axes

    names = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda self, words: names.append(words))
    sweep = {"extractor": ["digits-cnn", "other"], "n": 300, "steps": [1, 4]}
    one = study(tmp_path, ADDITIVE, sweep=sweep)
    for i, note in enumerate(one.notes):
        more = [changed(r, extractor="other", metric="KL") for r in note.rows]
        one.notes[i] = Note((*note.rows, *more))
    plot_axes(one, tmp_path)
    assert names == ["FD@449", "KL@449"] * 2
