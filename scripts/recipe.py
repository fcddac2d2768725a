"""Train a method of a data set, and before it what it starts from, by the configs in
configs/DATASET.

    python -m scripts.recipe digits consistency optimizer.lr=1e-4
    python -m scripts.recipe digits --all --lanes 2
    python -m scripts.recipe digits --for quickstart
    python -m scripts.recipe fashion_mnist curve solvers

NAME is a config's file name: a run, stored pairs, or a sweep. A config starts from another one
where one of its values is what the other makes: `method.teacher: runs/digits/teacher` needs the
config whose `run` that is. What is there already goes on as it was begun, and is left alone where
it is finished; the same command goes on after an interruption. With --all, a run that fails ends
no other but those that start from it.

    RUNS=FOLDER       where runs go, in place of runs/DATASET
    SEEDS=0,1,2       training seeds of what sweeps measure, but for entries that name their own:
                      the run of seed k > 0 is NAME-seedk, and starts from what NAME starts from
    SHIPPED=no        train a teacher that is missing, also where one ships with this repository
    CONFIGS=FOLDER    where the folder DATASET is (default: configs)"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from core.errors import UserError, command_line, nearest
from scripts.lanes import run_jobs
from scripts.planner import Planner, copy_shipped, read_configs
from scripts.setting_options import check_between, numbers


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", help="a folder of configs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="configs there")
    parser.add_argument("--all", action="store_true", help="every run of the folder")
    parser.add_argument("--for", dest="sweep", metavar="SWEEP", help="every run that it measures")
    parser.add_argument("--sweeps", action="store_true", help="every sweep of the folder's runs")
    parser.add_argument("--lanes", type=int, default=1, help="side by side (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    a = parser.parse_intermixed_args()
    runs = os.path.normpath(os.environ.get("RUNS") or f"runs/{a.dataset}")
    shipped = None if os.environ.get("SHIPPED") == "no" else Path("teachers/shipped")
    seeds = numbers(os.environ["SEEDS"], int, "SEEDS") if os.environ.get("SEEDS") else ()
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"SEEDS={os.environ['SEEDS']}: from 0 up, and each once")
    planner = Planner(read_configs(a.dataset, runs, seeds=tuple(seeds)), shipped)
    goals = [name for name in a.names if "=" not in name]
    overrides = [name for name in a.names if "=" in name]
    if (a.all or a.sweeps or a.sweep) and a.names:
        raise UserError(
            f"'{a.names[0]}' beside --all, --for or --sweeps: give it to the recipe of one method"
        )
    if overrides and len(goals) != 1:
        raise UserError(f"override '{overrides[0]}': give it with the name of one config")
    goals += planner.everything() * a.all + planner.sweeps() * a.sweeps
    goals += planner.measured_by(a.sweep) if a.sweep else []
    if not goals:
        raise UserError(
            f"nothing to do: name a config of {a.dataset}{nearest('', planner.configs)}"
        )
    check_between("--lanes", a.lanes, 1, 1000)
    steps = planner.plan(goals, overrides)
    if a.dry_run:
        for step in steps:
            command = shlex.join(("python", *step.job.command[1:])) if step.job.command else "-"
            print(f"{step.job.name:<18} {step.state:<6} {command}")
        return
    copy_shipped(steps)
    jobs = [step.job for step in steps if step.job.command]
    failed = run_jobs(jobs, a.lanes, keep_going=a.all)
    if failed:  # each has said why; what is not done is done by the same command
        raise SystemExit(max(failed.values()))


if __name__ == "__main__":
    main()
