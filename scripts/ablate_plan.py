"""The plan of a study in words: its cells, what is done, and what the rest will cost."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from core.training.checkpoints import read_newest
from core.training.config import BudgetConfig
from core.training.origin import read_origin, read_price
from eval.ablation.cells import Cell, Note, is_open, named
from eval.ablation.results import Study
from eval.sweep.run import duration
from eval.text import counted, one_line, text_table
from scripts.planner import Step
from scripts.train import resolved


def plan_words(study: Study, steps: list[Step], runs: Path) -> str:
    """The question, a line for each cell, what its cells need, and the price of what is to do."""
    config, states = study.config, {}
    for trial, note in zip(study.trials, study.notes, strict=True):
        states.setdefault(id(trial.cell), []).append(f"{trial.seed} {_state(note)}")
    lines = [["cell", "run", "seeds"]]
    for cell in study.cells:
        seeds = ", ".join(states.get(id(cell), ()))
        lines.append([named(config, cell.levels), cell.name or "-", cell.problem or seeds])
    first = [f"{step.job.name} ({step.state})" for step in steps]
    needed = f"\nfirst: {', '.join(first)}" if first else ""
    return (
        f"{one_line(config.question)}\n{text_table(lines, (0, 1, 2))}{needed}\n{_cost(study, runs)}"
    )


def _state(note: Note | None) -> str:
    if note is None:
        return "to do"
    return "done" if note.failed is None else "diverged" if note.diverged else "failed"


def _cost(study: Study, runs: Path) -> str:
    pairs = list(zip(study.trials, study.notes, strict=True))
    # Cells may share a training
    todo = {t.folder: t.cell for t, note in pairs if is_open(note)}
    every, words = {t.folder: t.cell for t in study.trials}, []
    known = prices(runs)
    for trials, which in ((list(every.values()), "in all"), (list(todo.values()), "to do")):
        evals, images, seconds = 0.0, 0, 0.0
        for cell in trials:
            method, budget = _budget(cell)
            per_eval = known.get(method)
            if budget.evals is None:
                images += budget.images
                seconds = None
            else:
                evals += budget.evals
                if seconds is not None:
                    seconds = seconds + budget.evals * per_eval if per_eval else None
        amount = [f"{evals:.3g} network evaluations"] if evals or not images else []
        amount += [f"{images:,} images"] if images else []
        time = "time unknown" if seconds is None else f"about {duration(seconds)} of training"
        time = "nothing" if not trials else time
        words.append(f"{which}: {counted(len(trials), 'training')}, {' and '.join(amount)}, {time}")
    return "\n".join(words)


def _budget(cell: Cell) -> tuple[str, BudgetConfig]:
    config = resolved({**cell.values, "run": "run"}, cell.name)
    return config.method.name, config.budget


def prices(runs: Path) -> dict[str, float]:
    """Seconds of training per network evaluation, by method: the median of the runs that are
    there, and of what studies trained."""
    found: dict[str, list[float]] = {}
    for config in sorted([*runs.glob("*/config.yaml"), *runs.glob("ablations/*/config.yaml")]):
        paid = read_newest(config.parent, read_price)
        if paid and paid.evals > 0 and paid.seconds > 0:
            name = read_origin(config.parent).method.name
            found.setdefault(name, []).append(paid.seconds / paid.evals)
    return {name: median(values) for name, values in found.items()}
