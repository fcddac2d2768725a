"""The table of a study, in Markdown: verdict, cells, effects, and where the variance comes from.
It holds nothing that differs between machines, so that an interrupted study ends with the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.ablation.cells import named
from eval.ablation.effects import (
    Effect,
    Results,
    components,
    corrected,
    interactions,
    main_effects,
)
from eval.ablation.results import Figures, Study, figures_of
from eval.ablation.verdict import listed, p_words, signed, verdicts
from eval.curves.seeds import mean_and_error
from eval.curves.series import protocol_label
from eval.text import counted, markdown, markdown_table, number

HOW = (
    "A difference is the mean over the other axes, paired by training seed. ± is its standard "
    "error, and p is of a paired t-test, corrected for the number of comparisons by Holm's method "
    "(effects and interactions apart). Lower is better."
)


def effects_of(figures: list[Figures]) -> tuple[list[Effect], list[Effect]]:
    """Main effects and interactions at all points, each family corrected as one."""
    mains = [effect for f in figures for effect in main_effects(f.results)]
    both = [effect for f in figures for effect in interactions(f.results)]
    return corrected(mains), corrected(both)


def table(study: Study, pictures: list[Path] = ()) -> str:
    """The whole page. pictures: beside it."""
    figures = figures_of(study)
    mains, both = effects_of(figures)
    config = study.config
    parts = [f"# {markdown(study.name)}", markdown(config.question)]
    parts.append(_about(study))
    if mains:
        said = [*verdicts(mains), *verdicts(both)]
        parts += ["## Verdict", "\n".join(f"- {markdown(line)}" for line in said), HOW]
        if len(config.seeds) == 1:
            parts.append(ONE_SEED)
    parts += ["## Cells", _cells(study, figures)]
    if problems := _problems(study):
        parts += ["## Failed", problems]
    if mains:
        parts += ["## Effects", _effects(mains)]
    if both:
        parts += ["## Interactions", _effects(both)]
    if variance := _variance(figures, study):
        parts += ["## Variance", variance]
    parts += [f"![{markdown(file.stem)}]({file.name})" for file in pictures]
    return "\n\n".join(parts) + "\n"


ONE_SEED = (
    "There is one training seed, so nothing is known of what another would change: this table "
    "allows no claim. Give seeds=[0,1,2] or more."
)


def _about(study: Study) -> str:
    pairs = list(zip(study.trials, study.notes, strict=True))
    done = {trial.folder for trial, note in pairs if note is not None and note.failed is None}
    config = study.config
    impossible = sum(cell.problem is not None for cell in study.cells) * len(config.seeds)
    whole = len({trial.folder for trial in study.trials}) + impossible
    words = (
        f"{counted(len(study.cells), 'cell')}, training seed{'s' * (len(config.seeds) > 1)} "
        f"{listed(map(str, config.seeds))}: "
        f"{len(done)} of {whole} trainings done."
    )
    rows = [row for row in study.rows if not row.is_floor]
    groups = list(dict.fromkeys(row.protocol for row in rows))
    labels = [protocol_label([r for r in rows if r.protocol == group]) for group in groups]
    return markdown(" ".join([words, *(f"{label}." for label in labels)]))


def _cells(study: Study, figures: list[Figures]) -> str:
    axes = list(study.config.factors)
    header = [*axes, "runs", "seeds", *(f.results.point for f in figures)]
    body = []
    for i, cell in enumerate(study.cells):
        seeds = [_count(f.results.values[i]) for f in figures] or [0]
        values = [_mean(f.results.values[i]) for f in figures]
        count = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        body.append([*cell.levels, cell.name or "impossible", count, *values])
    note = "The mean over training seeds ± its standard error. RUN-seedN is the folder of a run."
    return f"{markdown_table(header, body, left=len(axes) + 1)}\n\n{note}"


def _count(values: np.ndarray) -> int:
    return int((~np.isnan(values)).sum())


def _mean(values: np.ndarray) -> str:
    there = values[~np.isnan(values)]
    if not len(there):
        return "-"
    return number(*mean_and_error(there))


def _problems(study: Study) -> str:
    """A row for each training that came to nothing, with the reason."""
    config, body = study.config, []
    for cell in study.cells:
        if cell.problem:
            body.append([named(config, cell.levels), "all", f"impossible: {cell.problem}"])
    for trial, note in zip(study.trials, study.notes, strict=True):
        if note is None:
            body.append([named(config, trial.cell.levels), str(trial.seed), "not done"])
        elif note.failed:
            said = note.failed.replace(f"{trial.folder}: ", "").replace(f"{trial.folder}/", "")
            words = f"diverged: {said}" if note.diverged else f"failed: {said}"
            body.append([named(config, trial.cell.levels), str(trial.seed), words])
    if not body:
        return ""
    table = markdown_table(["cell", "seed", "what happened"], body, left=3)
    return f"{table}\n\nEffects are those of the cells and seeds that are left."


def _effects(effects: list[Effect]) -> str:
    header = ["axis", "difference of", "with", "at", "difference", "95 % interval", "p"]
    header += ["p corrected", "seeds"]
    body = []
    for effect in effects:
        e, where = effect.estimate, effect.where
        interval = "-" if e.low is None else f"{e.low:+.3g} to {e.high:+.3g}"
        ps = ["-" if p is None else p_words(p)[2:].lstrip("= ") for p in (e.p, effect.adjusted)]
        body.append([
            effect.axis, f"{effect.first} − {effect.second}",
            f"{where[0]}: {where[1]} − {where[2]}" if where else "", effect.point,
            signed(e.mean, e.error), interval, *ps, " ".join(map(str, effect.seeds)),
        ])  # fmt: skip
    keep = [i for i in range(len(header)) if i != 2 or any(e.where for e in effects)]
    rows = [[row[i] for i in keep] for row in body]
    return markdown_table([header[i] for i in keep], rows, left=len(keep) - 5)


def _variance(figures: list[Figures], study: Study) -> str:
    found = [(f, components(f.results, f.errors)) for f in figures]
    rows = [row for row in study.rows if not row.is_floor]
    kinds = sorted({row.fid_error for row in rows if row.fid_error})
    body = [[c.point, f"{c.seed:.3g}", f"{c.samples:.3g}", f"{c.share:.0%}"] for _, c in found if c]
    if not body:
        return ""
    header = ["at", "training seed", "samples", "share of the seed"]
    small = " A seed's 0 stands for less than the samples' own." if any(
        c and c.raw <= 0 for _, c in found
    ) else ""  # fmt: skip
    return (
        f"{markdown_table(header, body)}\n\nStandard deviations of one figure, pooled over the "
        f"cells: a random-effects estimate, samples within seeds. What the samples do is known "
        f"from {listed(kinds)}.{small}"
    )


def spread(results: Results, place: int) -> dict[str, np.ndarray]:
    """By the level of an axis: [S] the mean over the other axes, for each seed, NaN where a cell
    is missing. Of combinations that every level has."""
    levels = list(dict.fromkeys(cell[place] for cell in results.levels))
    rows = {cell: i for i, cell in enumerate(results.levels)}
    rests = dict.fromkeys((*c[:place], *c[place + 1 :]) for c in results.levels)
    groups = []
    for rest in rests:
        group = [rows.get((*rest[:place], level, *rest[place:])) for level in levels]
        if None not in group and not np.isnan(results.values[group]).all(1).any():
            groups.append(group)
    if not groups:
        return {}
    means = results.values[np.array(groups)].mean(0)
    return dict(zip(levels, means, strict=True))
