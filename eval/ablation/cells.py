"""The cells of a study: which configs are trained, in which folders, and what each left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from core.config import Strict, apply_overrides, config_sha256, parse
from core.errors import UserError
from core.files import read_json, write_text
from core.training.config import RunConfig
from eval.ablation.config import StudyConfig, StudySweep, words
from eval.rows import Row, Unmeasured, parse_row
from eval.sweep.config import SweepConfig

Resolve = Callable[[dict, str], RunConfig]  # the values of a run config, typed; or UserError


@dataclass(frozen=True)
class Cell:
    """One combination of levels.

    levels: in words, as many as there are axes. name: the method with a hash of the resolved config
    but for its folder, its log and its seed, so that studies share what they have in common; None
    where the config cannot be, as `problem` says. sweep: how it is measured, None: as the study is.
    """

    levels: tuple[str, ...]
    values: dict = field(repr=False)
    name: str | None
    problem: str | None = None
    sweep: StudySweep | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Trial:
    """A cell trained with one seed. folder: of the run, which other cells may share; note: what the
    study keeps of it."""

    cell: Cell
    seed: int
    folder: Path
    note: Path
    sweep: SweepConfig

    @property
    def values(self) -> dict:
        """Of the run's config."""
        return {**with_seed(self.cell.values, self.seed), "run": str(self.folder)}


def with_seed(values: dict, seed: int) -> dict:
    return apply_overrides(values, [f"train.seed={seed}"])


def make_cells(study: StudyConfig, values: dict, resolve: Resolve, source: str) -> list[Cell]:
    """Every cell that no condition leaves out, in the order of the axes.

    Args:
        values: of the run config that the cells change.

    Raises:
        UserError: no cell is left or possible, a condition leaves out nothing, or two cells are one
            and the same config.
    """
    chosen = _combinations(study, source)
    cells = [_cell(levels, changes, values, study, resolve, source) for levels, changes in chosen]
    if all(cell.problem for cell in cells):
        raise UserError(cells[0].problem)
    seen: dict[tuple, Cell] = {}
    for cell in cells:
        same = (cell.name, config_sha256(cell.sweep or study.sweep))
        if cell.name and (other := seen.setdefault(same, cell)) is not cell:
            raise UserError(
                f"{source}: the cells {named(study, other.levels)} and "
                f"{named(study, cell.levels)} are the same config: leave one out with except"
            )
    return cells


def named(study: StudyConfig, levels: tuple[str, ...]) -> str:
    """ "method.weight=uniform, method.distance=squared"; a variant by its name alone."""
    if study.variants:
        return levels[0]
    return ", ".join(f"{key}={level}" for key, level in zip(study.factors, levels, strict=True))


def _combinations(study: StudyConfig, source: str) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """(levels, overrides) of each cell."""
    if study.variants:
        every = [((name,), changes) for name, changes in study.variants.items()]
    else:
        every = [
            (tuple(map(words, values)), dict(zip(study.axes, values, strict=True)))
            for values in product(*study.axes.values())
        ]
    left_out = set()
    for condition in study.excluded:
        met = {levels for levels, _ in every if _meets(study, levels, condition)}
        if not met:
            raise UserError(f"{source}: except: no cell is {json.dumps(condition)}")
        left_out |= met
    chosen = [(levels, changes) for levels, changes in every if levels not in left_out]
    if len(chosen) < 2:
        raise UserError(f"{source}: except leaves {len(chosen)} of {len(every)} cells: too few")
    return chosen


def _meets(study: StudyConfig, levels: tuple[str, ...], condition: dict[str, Any]) -> bool:
    given = dict(zip(study.factors, levels, strict=True))
    return all(
        given[key] in {words(value), *(map(words, value) if isinstance(value, tuple) else ())}
        for key, value in condition.items()
    )


def _cell(
    levels: tuple[str, ...],
    changes: dict[str, Any],
    values: dict,
    study: StudyConfig,
    resolve: Resolve,
    source: str,
) -> Cell:
    measured = {key: value for key, value in changes.items() if key.startswith("sweep.")}
    try:
        sweep = study.sweep.changed(measured, source) if measured else None
        given = [f"{k}={json.dumps(value)}" for k, value in changes.items() if k not in measured]
        values = apply_overrides(values, given)
        config = resolve({**with_seed(values, 0), "run": "run"}, source)
    except UserError as error:
        return Cell(levels, values, None, str(error))
    digest = config_sha256(config, without=("run", "log"))[:10]
    return Cell(levels, values, f"{config.method.name}-{digest}", sweep=sweep)


# ---------------------------------------------------------------- what a trial left behind


@dataclass(frozen=True)
class Note:
    """What a study knows of a trial: its rows, or why there are none. diverged: training itself
    came to nothing, and would again."""

    rows: tuple[Row, ...] = ()
    failed: str | None = None
    diverged: bool = False


class _Written(Strict):
    """A note as it lies on disk."""

    sweep: str
    failed: str | None
    diverged: bool
    rows: tuple[dict, ...]


def write_note(file: Path, sweep: SweepConfig, note: Note) -> None:
    written = {
        "sweep": config_sha256(sweep),
        "failed": note.failed,
        "diverged": note.diverged,
        "rows": [row.model_dump(mode="json") for row in note.rows],
    }
    write_text(file, json.dumps(written, indent=1))


def read_note(file: Path, sweep: SweepConfig) -> Note | None:
    """The note of a trial; None where there is none, it is of another sweep, or the run whose rows
    it holds is gone.

    Raises:
        UserError: the file is damaged.
    """
    if not file.is_file():
        return None
    mend = "delete it, and the same command makes it again"
    written = parse(_Written, read_json(file, mend), str(file))
    if written.sweep != config_sha256(sweep):
        return None
    if not written.failed and not (Path(sweep.entries[0].run) / "config.yaml").is_file():
        return None
    try:
        rows = tuple(parse_row(json.dumps(row).encode(), str(file)) for row in written.rows)
    except Unmeasured as error:
        raise UserError(f"{file} holds a row without a distance: {mend}") from error
    return Note(rows, written.failed, written.diverged)


def trials_of(study: StudyConfig, cells: list[Cell], runs: Path, out: Path) -> list[Trial]:
    """Every possible cell with every seed, seed by seed, so that a study that is looked at halfway
    has every cell with the first seeds."""
    return [
        Trial(
            cell, seed, folder, out / "cells" / f"{folder.name}{_suffix(cell, study)}.json", sweep
        )
        for seed in study.seeds
        for cell in cells
        if cell.name
        for folder in [runs / "ablations" / f"{cell.name}-seed{seed}"]
        for sweep in [(cell.sweep or study.sweep).of_run(folder, seed)]
    ]


def _suffix(cell: Cell, study: StudyConfig) -> str:
    """What tells the notes of cells that share a training apart."""
    own = cell.sweep or study.sweep
    return "" if own == study.sweep else f"-{config_sha256(own)[:6]}"


def is_open(note: Note | None, retry: bool = False) -> bool:
    """Whether a trial is to be done: it was not, or it failed. What diverged would do so again, and
    is left alone but for `retry`."""
    return note is None or (note.failed is not None and (retry or not note.diverged))
