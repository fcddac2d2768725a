"""From rows to figures: what was measured of every cell, at each number of steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.ablation.cells import Cell, Note, Trial
from eval.ablation.config import StudyConfig
from eval.ablation.effects import Results
from eval.curves.compare import standard_error
from eval.rows import Row
from eval.text import counted


@dataclass(frozen=True)
class Study:
    """All that is known of a study. notes: of each trial, None where there is nothing yet."""

    name: str
    config: StudyConfig
    cells: list[Cell]
    trials: list[Trial]
    notes: list[Note | None]

    @property
    def rows(self) -> list[Row]:
        return [row for note in self.notes if note for row in note.rows]


@dataclass(frozen=True)
class Figures:
    """Of one point: every cell with every seed, and the standard error of each figure [cells,
    seeds] from its sample sets or bootstrap, NaN where there is none."""

    results: Results
    errors: np.ndarray


def point_of(row: Row, config: StudyConfig) -> str:
    """The point of a row in words: its number of steps, and of sampler, guidance and extractor what
    the study varies."""
    sweep, words = config.sweep, [counted(row.steps, "step")]
    if len(sweep.guidance_scales or ()) > 1:
        words.append(f"guidance {row.guidance_scale:g}")
    if len(sweep.samplers or ()) > 1:
        words.append(row.sampler)
    if len(sweep.extractors) > 1:
        words.append(row.extractor)
    return ", ".join(words)


def figures_of(study: Study) -> list[Figures]:
    """By point, in the order of extractors, samplers, guidance and steps."""
    config, places = study.config, {id(cell): i for i, cell in enumerate(study.cells)}
    columns = {seed: i for i, seed in enumerate(config.seeds)}
    found: dict[tuple, tuple[str, np.ndarray]] = {}
    for trial, note in zip(study.trials, study.notes, strict=True):
        for row in note.rows if note else ():
            if row.is_floor:
                continue
            order = (
                config.sweep.extractors.index(row.extractor),
                (config.sweep.samplers or (row.sampler,)).index(row.sampler),
                row.guidance_scale,
                row.steps,
            )
            empty = np.full((2, len(study.cells), len(config.seeds)), np.nan)
            _, values = found.setdefault(order, (point_of(row, config), empty))
            error = standard_error(row)
            where = places[id(trial.cell)], columns[trial.seed]
            values[0][where], values[1][where] = row.fid, np.nan if error is None else error
    axes, levels = tuple(config.factors), tuple(cell.levels for cell in study.cells)
    return [
        Figures(Results(point, axes, levels, config.seeds, values), errors)
        for _, (point, (values, errors)) in sorted(found.items())
    ]
