"""What is killed: commands that make a folder, of the shrunken configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml

import lab
from scripts.planner import Config, Planner
from tests.helpers.shrunken import configs_of_methods, small_planner
from tests.helpers.study import write_study
from tests.kill.victims import run


class Subject(NamedTuple):
    """kind: as on the command line; name: of the config, if it is one; command: what makes a folder
    that is there and empty, or not there."""

    kind: str
    name: str
    command: Callable[[Path], tuple[str, ...]]


def train(config: Config) -> Subject:
    return Subject(
        "train",
        config.file.stem,
        lambda out: ("scripts.train", str(config.file), f"run={out}", "--cpu"),
    )


def pairs(config: Config) -> Subject:
    sizes = ("shard=4", "batch_size=2")
    return Subject(
        "pairs",
        config.file.stem,
        lambda out: ("scripts.pairs", str(config.file), f"out={out}", *sizes),
    )


def sweep(config: Config, keep: bool) -> Subject:
    more = (f"keep_features={str(keep).lower()}", "device=cpu")
    return Subject(
        "sweep",
        config.file.stem + ", features kept" * keep,
        lambda out: (
            *("scripts.evaluate", str(config.file), f"out={out}/curves.jsonl"),
            *(f"cache={out}/cache", *more),
        ),
    )


def ablation(study: Path) -> Subject:
    return Subject("ablation", "", lambda out: ("tests.kill.study", str(study), str(out)))


def plot(curves: Path, relative_to: str) -> Subject:
    return Subject(
        "plot",
        "",
        lambda out: (
            *("scripts.plot", str(curves), "--out", str(out)),
            *("--markdown", f"{out}/table.md", "--relative-to", relative_to),
        ),
    )


def report(curves: Path, runs: Path) -> Subject:
    return Subject(
        "report",
        "",
        lambda out: (
            *("scripts.report", str(curves), "--runs", str(runs)),
            *("--out", f"{out}/report.html", "--steps", "1,2", "--images", "2"),
        ),
    )


def prepared(folder: Path, kinds: list[str], short: bool) -> list[Subject]:
    """The subjects of these kinds. What they need is made first, in folder/runs; short: the first
    method that regresses, the first that plays a game, and what these need."""
    planner = small_planner(folder)
    runs = [name for name, c in planner.configs.items() if c.kind == "run"]
    first = configs_of_methods(planner)
    assert first.keys() == lab.METHODS.keys(), "a method without a config, or the reverse"
    runs = [*first.values(), *(name for name in runs if name not in first.values())]
    if short:
        runs = _short(planner, runs)
    wanted = runs if {"train", "two", "sweep", "plot", "report"} & set(kinds) else []
    made = [name for name, c in planner.configs.items() if c.kind == "pairs"]
    if short:
        made = [n for n in made if set(planner.needs(n)) <= set(runs)][:1]
    _make(planner, [*wanted, *(need for name in made for need in planner.needs(name))], folder)
    subjects = [train(planner.configs[name]) for name in runs] if "train" in kinds else []
    if "pairs" in kinds:
        subjects += [pairs(planner.configs[name]) for name in made]
    if {"sweep", "plot", "report"} & set(kinds):
        config = _of_runs(planner.configs["curve"], runs, planner)
        sweeps = [sweep(config, keep) for keep in (False, True)]
        subjects += sweeps if "sweep" in kinds else []
        curves = folder / "measured" / "curves.jsonl"
        if {"plot", "report"} & set(kinds):
            _run(sweeps[0].command(folder / "measured"), folder)
        subjects += [plot(curves, runs[0])] if "plot" in kinds else []
        subjects += [report(curves, folder / "runs")] if "report" in kinds else []
    if "ablation" in kinds:
        subjects.append(ablation(write_study(folder / "study", seeds=[0, 1])))
    if "two" in kinds:
        subjects += [train(planner.configs[n])._replace(kind="two") for n in runs if _learns(n)]
    return subjects


def _learns(name: str) -> bool:
    return name != "ppca"


def _short(planner: Planner, runs: list[str]) -> list[str]:
    """The run that others need most, and one with a network besides its own in its config."""
    needed = [n for n in runs if not planner.needs(n)]
    flow = next(n for n in needed if any(n in planner.needs(p) for p in planner.configs))
    game = next(
        n for n in needed
        if any(isinstance(v, dict) and "widths" in v for v in planner.configs[n].values["method"].values())
    )  # fmt: skip
    return [flow, game]


def _of_runs(config: Config, runs: list[str], planner: Planner) -> Config:
    """The sweep's entries of these runs alone."""
    folders = {Path(planner.configs[name].makes()).name for name in runs}
    entries = [entry for entry in config.values["entries"] if entry["run"] in folders]
    values = config.values | {"entries": entries}
    config.file.write_text(yaml.safe_dump(values, sort_keys=False))
    return Config(config.file, config.kind, [], values)


def _make(planner: Planner, goals: list[str], folder: Path) -> None:
    for step in planner.plan(list(dict.fromkeys(goals))):
        module, *arguments = step.job.command[2:]
        _run((module, *arguments), folder)


def _run(command: tuple[str, ...], folder: Path) -> None:
    end = run(command, folder / "log.txt")
    if end.code:
        said = (folder / "log.txt").read_text(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(command)} failed: {said}")
