"""Copies a measured curve into results/: rows, kept samples, configs, pictures, tables and the
report page.

    python -m scripts.publish runs/quickstart results/digits
    python -m scripts.publish runs/toy/ablations/toy_flow_maps results/ablations/toy_flow_maps

The second is a study (scripts.ablate): its table, its pictures and its rows.

What the target holds besides, such as a README.md, stays. It is replaced as a whole when everything
is ready, and stays as it is when something is wrong. Rows say which files are copied and drawn, and
may come from anywhere: nothing outside the first folder is read, and links are refused."""

from __future__ import annotations

import argparse
import os
import shutil
import stat
from pathlib import Path

from core.errors import UserError, command_line
from core.files import whole_folder
from core.pictures import read_samples, samples_file
from eval.curves_file import read_measured, read_rows
from eval.report.document import write_report
from eval.report.paths import plot_paths
from eval.rows import Row
from lab import load
from scripts.plot import draw

ROOT = Path(__file__).resolve().parents[1]
FILES = ("curves.jsonl", "table.md", "report.html")
FOLDERS = ("samples", "configs", "solvers")
# .png and .svg, of whatever protocol
PICTURES = ("curves", "overview", "seconds", "coverage", "samples", "trajectories")
AXIS = "axis-"  # pictures of a study


def owned(name: str) -> bool:
    """Whether publishing writes what has this name in the target, and removes it when there is no
    such thing any more."""
    picture = name.startswith((*PICTURES, AXIS)) and name.endswith((".png", ".svg"))
    return picture or name in FILES or name in FOLDERS


def _plain(place: Path) -> Path:
    """Raises UserError for anything but a regular file."""
    if not stat.S_ISREG(place.lstat().st_mode):
        raise UserError(f"{place} is a link or something else that is no file: put the file there")
    return place


def check_folders(source: Path, target: Path) -> None:
    """Raises UserError where there are no rows, or the target is no place for results."""
    if not (source / "curves.jsonl").is_file():
        raise UserError(
            f"{source / 'curves.jsonl'} does not exist: run scripts/quickstart.sh or python -m scripts.evaluate first"
        )
    read_measured(source / "curves.jsonl")  # its mistakes are named where they are, not in the copy
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} exists and is no folder: give another one")
    source, place = source.resolve(), target.resolve()
    if source == place:
        raise UserError(
            f"{source} and {target} are one folder: python -m scripts.plot and scripts.report draw in place"
        )
    for kept in (source, ROOT, Path.cwd()):
        if kept.is_relative_to(place):
            raise UserError(
                f"{target} holds {kept}: give a folder of results, such as results/digits"
            )
    if place.is_relative_to(source):
        raise UserError(f"{target} is in {source}: give a folder elsewhere, such as results/digits")
    if run := next(target.glob("*/config.yaml"), None):
        raise UserError(f"{target} holds the run {run.parent.name}: give a folder of results")


def check_names(rows: list[Row], curves: Path) -> None:
    """Raises UserError for a row with a name that files are called by and that leads elsewhere."""
    for row in rows:
        for key in ("dataset", "extractor", "n", "reference"):
            if "/" in str(getattr(row, key)) or "\\" in str(getattr(row, key)):
                raise UserError(
                    f"{curves}: {key} = {getattr(row, key)!r} of a row names files: no / in it"
                )


def copy_rows(source: Path, target: Path) -> list[Row]:
    """Copies a curves file and the samples of its rows (not those of earlier weights) into an empty
    folder; returns the rows. Samples that are not there are left out.

    Raises:
        UserError: see check_names and core.pictures.samples_file.
    """
    (target / "samples").mkdir(parents=True)
    shutil.copyfile(_plain(source / "curves.jsonl"), target / "curves.jsonl")
    rows = read_rows(target / "curves.jsonl")
    check_names(rows, source / "curves.jsonl")
    files = [samples_file(source, row.samples) for row in rows if row.samples]
    for file in dict.fromkeys(files):
        if file.exists():
            name = file.relative_to(source)
            (target / name).write_bytes(read_samples(source, str(name))[0])
    return rows


def copy_solvers(source: Path, target: Path) -> list[Row]:
    """The rows of all solvers of a run, which are drawn on a curve of their own; [] without."""
    if source.is_symlink():
        raise UserError(f"{source} is a link: put the folder there")
    return copy_rows(source, target) if (source / "curves.jsonl").is_file() else []


def copy_configs(source: Path, target: Path) -> None:
    """The config of every run in `source`, as RUN.yaml."""
    target.mkdir()
    for config in sorted(source.glob("*/config.yaml")):
        if config.parent.is_symlink():
            raise UserError(f"{config.parent} is a link: put the run there, or away")
        shutil.copyfile(_plain(config), target / f"{config.parent.name}.yaml")


def copy_rest(target: Path, staged: Path) -> None:
    """What the target holds that is not published. Raises UserError for a link in it."""
    for entry in sorted(target.iterdir()) if target.is_dir() else ():
        if owned(entry.name):
            continue
        inside = [Path(top) / n for top, *names in os.walk(entry) for n in [*names[0], *names[1]]]
        for place in (entry, *inside):
            if not stat.S_ISDIR(place.lstat().st_mode):
                _plain(place)
        if entry.is_dir():
            shutil.copytree(entry, staged / entry.name)
        else:
            shutil.copy2(entry, staged / entry.name)


def is_study(source: Path) -> bool:
    """Whether it is the folder of a study, which has a table of its own."""
    return (source / "cells").is_dir() and (source / "table.md").is_file()


def publish_study(source: Path, target: Path) -> None:
    """Makes `target` of the table, pictures and rows of a study.

    Raises:
        UserError: see `check_folders`, `copy_rest` and `copy_rows`; the target is as it was.
    """
    check_folders(source, target)
    with whole_folder(target) as staged:
        copy_rest(target, staged)
        copy_rows(source, staged)
        shutil.rmtree(staged / "samples")  # of rows that lie with their runs
        for file in sorted([source / "table.md", *source.glob(f"{AXIS}*.png")]):
            shutil.copyfile(_plain(file), staged / file.name)


def publish(source: Path, target: Path) -> None:
    """Makes `target` of what was measured in `source`.

    Raises:
        UserError: see the functions above; the target is as it was.
    """
    check_folders(source, target)
    with whole_folder(target) as staged:
        copy_rest(target, staged)
        rows = copy_rows(source, staged)
        copy_configs(source, staged / "configs")
        solvers = copy_solvers(source / "solvers", staged / "solvers")
        teacher = "teacher" if any(row.run == "teacher" for row in rows) else None
        draw([staged / "curves.jsonl"], staged, staged / "table.md", teacher)
        plot_paths(rows, source, staged / "trajectories.png", load)
        write_report(staged / "curves.jsonl", staged / "report.html", load, source)
        if solvers:  # of one run, by their protocol
            row = next((row for row in solvers if not row.is_floor), solvers[0])
            same = ",".join(f"{key}={getattr(row, key)}" for key in ("run", "n", "extractor"))
            folder = staged / "solvers"
            files = [folder / "curves.jsonl", staged / "curves.jsonl"]
            draw(files, folder, folder / "table.md", only=same)


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", type=Path, help="folder with curves.jsonl, such as runs/digits, or of a study"
    )
    parser.add_argument("target", type=Path, help="folder in results")
    a = parser.parse_args()
    (publish_study if is_study(a.source) else publish)(a.source, a.target)
    print(a.target)


if __name__ == "__main__":
    main()
