"""Answer a question by training: every cell of a study with several seeds, measured, and a table
that says what makes a difference and with which certainty.

    python -m scripts.ablate configs/ablations/digits_flow_times.yaml --dry-run
    python -m scripts.ablate configs/ablations/digits_flow_times.yaml seeds=[0,1,2] --lanes 2
    python -m scripts.ablate configs/ablations/digits_consistency.yaml \\
        --slurm partition=gpu,gpus=1,hours=4

The plan is printed first. Cells that are done are not done again, also where another study trained
them; the same command goes on after an interruption. A cell that fails ends nothing: the table says
so. Out come table.md, a picture for each axis and curves.jsonl. docs/ablations.md tells a study
from question to verdict.

    RUNS=FOLDER       where runs go, in place of runs/DATASET
    SHIPPED=no        train a teacher that is missing, also where one ships with this repository"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from core.config import apply_overrides, config_sha256
from core.errors import UserError, command_line
from core.files import check_place, write_text
from eval.ablation.cells import Note, Trial, is_open, make_cells, read_note, trials_of
from eval.ablation.config import base_run, read_study
from eval.ablation.plots import plot_axes
from eval.ablation.results import Study
from eval.ablation.table import table
from eval.sweep.run import make_extractors
from scripts.ablate_cell import write_task
from scripts.ablate_plan import plan_words
from scripts.cluster import read_options, submit_jobs
from scripts.lanes import Job, run_jobs
from scripts.planner import Planner, Step, copy_shipped, moved_to, read_configs
from scripts.setting_options import check_between
from scripts.train import resolved

Runner = Callable[[list[Job]], dict[str, int]]  # exit codes of those that failed


@dataclass(frozen=True)
class Planned:
    """A study before anything is done. runs: where its data set's runs go. steps: what its cells
    need."""

    study: Study
    out: Path
    runs: Path
    planner: Planner
    steps: list[Step]


def read_plan(file: Path, overrides: list[str]) -> Planned:
    """The study of a file with overrides, and how far it is."""
    config, values = read_study(file, overrides)
    base = base_run(file)
    dataset = base.resolve().parent.name if base else values.get("data", {}).get("name", "none")
    runs = os.path.normpath(os.environ.get("RUNS") or f"runs/{dataset}")
    values = apply_overrides(values, moved_to(values, dataset, runs))
    cells = make_cells(config, values, resolved, str(file))
    out = Path(config.out or f"{runs}/ablations/{file.stem}")
    trials = trials_of(config, cells, Path(runs), out)
    study = Study(file.stem, config, cells, trials, [read_note(t.note, t.sweep) for t in trials])
    shipped = None if os.environ.get("SHIPPED") == "no" else Path("teachers/shipped")
    configs = read_configs(dataset, runs, base.resolve().parent.parent) if base else {}
    planner = Planner(configs, shipped)
    needed = [name for cell in cells if cell.name for name in _needs(planner, cell.values)]
    steps = planner.preparations(list(dict.fromkeys(needed)))
    return Planned(study, out, Path(runs), planner, steps)


def _needs(planner: Planner, values: dict) -> list[str]:
    """The configs that make what a cell starts from; its `run` is what its base makes."""
    return planner.makers_of({key: value for key, value in values.items() if key != "run"})


def check_measuring(planned: Planned) -> None:
    """Raises UserError, ahead of all training, where what is trained could not be measured: an
    extractor that is not here or does not read the data, or data that are not there."""
    checked = set()
    for trial, note in zip(planned.study.trials, planned.study.notes, strict=True):
        source = resolved(trial.values, str(trial.note)).data
        if is_open(note) and (digest := config_sha256(source)) not in checked:
            checked.add(digest)
            make_extractors(trial.sweep, source.load(trial.sweep.reference), "cpu")


def run_study(planned: Planned, runner: Runner, retry: bool = False) -> Study:
    """Does what is to be done, and returns the study as it is then."""
    study = planned.study
    pairs = zip(study.trials, study.notes, strict=True)
    todo = [trial for trial, note in pairs if is_open(note, retry)]
    made = {step.job.name for step in planned.steps if step.job.command}
    jobs = [step.job for step in planned.steps if step.job.command and todo]
    for trial in todo:
        task = write_task(trial, resolved(trial.values, str(trial.note)))
        command = (sys.executable, "-m", "scripts.ablate_cell", str(task))
        after = frozenset(made & set(_needs(planned.planner, trial.cell.values)))
        jobs.append(Job(trial.note.stem, command, after))
    if todo:
        copy_shipped(planned.steps)
    failed = runner(jobs) if jobs else {}
    notes = [read_note(t.note, t.sweep) or _lost(t, jobs, failed) for t in study.trials]
    return replace(study, notes=notes)


def _lost(trial: Trial, jobs: list[Job], failed: dict[str, int]) -> Note | None:
    """Of a training that left no note: it was ended from outside, or never begun."""
    if (code := failed.get(trial.note.stem)) is not None:
        return Note(failed=f"its process ended with exit code {code}")
    after = next((job.after for job in jobs if job.name == trial.note.stem), frozenset())
    missing = sorted(after & failed.keys() or failed) if after else ()
    return Note(failed=f"not begun: {missing[0]} failed, which it needs") if missing else None


def write_results(study: Study, out: Path) -> None:
    """table.md with its pictures, and curves.jsonl with the rows of all cells."""
    unique = {row.key: row for row in study.rows}.values()
    write_text(out / "curves.jsonl", "".join(f"{row.json_line()}\n" for row in unique))
    pictures = plot_axes(study, out) if unique else []
    write_text(out / "table.md", table(study, pictures))


def _runner(a: argparse.Namespace, out: Path) -> Runner:
    if a.slurm is None and not a.local_executor:
        return lambda jobs: run_jobs(jobs, a.lanes, keep_going=True)
    cluster = "local" if a.local_executor else "slurm"
    options = read_options(a.slurm or "")
    if cluster == "local":
        options = options.model_copy(update={"at_once": a.lanes})
    return lambda jobs: submit_jobs(jobs, cluster, options, out / "jobs")


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, help="a YAML file with question, base, axes, seeds")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as seeds=[0,1]")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--table", action="store_true", help="the table of what is done, no more")
    parser.add_argument("--retry", action="store_true", help="also what diverged, once more")
    parser.add_argument("--lanes", type=int, default=1, help="side by side (default: %(default)s)")
    parser.add_argument("--slurm", metavar="OPTIONS", help="on Slurm: partition=gpu,gpus=1,hours=4")
    parser.add_argument(
        "--local-executor", action="store_true", help="as --slurm does it, without a cluster"
    )
    a = parser.parse_intermixed_args()
    check_between("--lanes", a.lanes, 1, 1000)
    if a.slurm is not None and a.local_executor:
        raise UserError("--slurm beside --local-executor: give one of them")
    planned = read_plan(a.study, a.overrides)
    print(plan_words(planned.study, planned.steps, planned.runs), flush=True)
    if a.dry_run:
        return
    check_place(planned.out, folder=True)
    # wandb groups the runs of a study where log.wandb asks for it
    os.environ.setdefault("WANDB_RUN_GROUP", planned.study.name)
    study = planned.study
    if not a.table:
        check_place(planned.runs / "ablations", folder=True)
        check_measuring(planned)
        study = run_study(planned, _runner(a, planned.out), a.retry)
    write_results(study, planned.out)
    print((planned.out / "table.md").read_text(encoding="utf-8"))
    print(f"wrote {planned.out / 'table.md'}", file=sys.stderr)


if __name__ == "__main__":
    main()
