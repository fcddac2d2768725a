"""What a method's training starts from, found in the configs of its data set."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.config import apply_overrides, read_config
from core.errors import UserError, nearest
from core.files import whole_folder
from eval.curves.seeds import seeded
from scripts.lanes import Job, cores

SCRIPTS = {"run": "scripts.train", "pairs": "scripts.pairs", "sweep": "scripts.evaluate"}


@dataclass(frozen=True)
class Config:
    """A file that makes something.

    kind: run, pairs or sweep; moved: overrides that put its paths where runs go; values: with
    those."""

    file: Path
    kind: str
    moved: list[str]
    values: dict

    def makes(self, overrides: list[str] = ()) -> str:
        key = "run" if self.kind == "run" else "out"
        made = apply_overrides(self.values, overrides).get(key)
        if not isinstance(made, str):
            raise UserError(f"{self.file}: key '{key}' is missing")
        return made


@dataclass(frozen=True)
class Step:
    """Something that is made by a job. state: new, there, or the shipped folder that is copied; a
    job without a command is for what is there or copied."""

    job: Job
    state: str
    folder: Path


def _kind(values: dict) -> str | None:
    """None for what others are based on, and for studies."""
    if "question" in values:
        return None
    marks = {"method": "run", "entries": "sweep", "out": "pairs"}
    return next((kind for mark, kind in marks.items() if mark in values), None)


def _strings(values: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _strings(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield prefix + key, value


def moved_to(values: dict, dataset: str, runs: str) -> list[str]:
    """Overrides by which values that begin with runs/DATASET begin with `runs` instead."""
    old = f"runs/{dataset}"
    if runs == old:
        return []
    return [
        f"{key}={runs}{value[len(old) :]}"
        for key, value in _strings(values)
        if f"{value}/".startswith(f"{old}/")
    ]


def measured_seeds(sweep: Config) -> Iterator[tuple[str, int]]:
    """(run, seed) of every training that a sweep measures: the run's place, and its seed where the
    sweep names seeds, else 0."""
    values = sweep.values
    for entry in values["entries"]:
        for seed in entry.get("seeds") or values.get("seeds") or (0,):
            yield os.path.normpath(f"{values.get('runs') or '.'}/{entry['run']}"), seed


def _with_seeds(configs: dict[str, Config]) -> dict[str, Config]:
    """The configs, and of each run one for every other training seed that a sweep measures: the
    same with that seed, in a folder of its own. What it starts from is what the run starts from."""
    found = dict(configs)
    makers = {os.path.normpath(c.makes()): n for n, c in configs.items() if c.kind == "run"}
    for sweep in configs.values():
        for run, seed in measured_seeds(sweep) if sweep.kind == "sweep" else ():
            if seed and (name := makers.get(run)):
                config = configs[name]
                changes = [f"train.seed={seed}", f"run={seeded(run, seed)}"]
                moved = [*(m for m in config.moved if not m.startswith("run=")), *changes]
                values = apply_overrides(config.values, changes)
                found[seeded(name, seed)] = Config(config.file, "run", moved, values)
    return found


def read_configs(
    dataset: str,
    runs: str | None = None,
    root: Path | None = None,
    seeds: tuple[int, ...] = (),
) -> dict[str, Config]:
    """The configs of a data set by name, in `root` (None: configs/). Values that begin with
    runs/DATASET begin with `runs` instead, and sweeps measure the training `seeds` if any are
    given, but for entries that name their own. Runs are there for every seed that is measured."""
    root = root or Path(os.environ.get("CONFIGS", "configs"))
    known = [folder.name for folder in root.glob("*") if folder.is_dir()]
    if dataset not in known:
        raise UserError(f"unknown data set '{dataset}'{nearest(dataset, known)}")
    configs = {}
    for file in sorted((root / dataset).glob("*.yaml"), key=lambda file: file.stem):
        values = read_config(file)
        moved = moved_to(values, dataset, runs) if runs else []
        if kind := _kind(values):
            moved += [f"seeds={list(seeds)}"] if seeds and kind == "sweep" else []
            configs[file.stem] = Config(file, kind, moved, apply_overrides(values, moved))
    return _with_seeds(configs)


class Planner:
    """What has to be made for some goals, in an order in which it can be."""

    def __init__(self, configs: dict[str, Config], shipped: Path | None):
        self.configs, self.shipped = configs, shipped
        self.makers: dict[str, str] = {}
        for name, config in configs.items():
            if config.kind != "sweep":
                made = os.path.normpath(config.makes())
                if (other := self.makers.setdefault(made, name)) != name:
                    raise UserError(f"{config.file} makes {made}, as {other}.yaml does")

    def needs(self, name: str, overrides: list[str] = ()) -> list[str]:
        values = apply_overrides(self.configs[name].values, overrides)
        return [other for other in self.makers_of(values) if other != name]

    def makers_of(self, values: dict) -> list[str]:
        """The configs that make what `values` name."""
        found = [self.makers.get(os.path.normpath(value)) for _, value in _strings(values)]
        return [other for other in dict.fromkeys(found) if other is not None]

    def everything(self) -> list[str]:
        """The runs that no other config needs."""
        needed = {other for name in self.configs for other in self.needs(name)}
        return [n for n, c in self.configs.items() if c.kind == "run" and n not in needed]

    def sweeps(self) -> list[str]:
        """The sweeps that measure this data set's runs."""
        return [n for n, c in self.configs.items() if c.kind == "sweep" and c.values.get("runs")]

    def measured_by(self, sweep: str) -> list[str]:
        """The runs that a sweep's entries name; raises UserError where `sweep` is none."""
        if sweep not in self.configs or self.configs[sweep].kind != "sweep":
            raise UserError(f"unknown sweep '{sweep}'{nearest(sweep, self.sweeps())}")
        runs = [seeded(run, seed) for run, seed in measured_seeds(self.configs[sweep])]
        return self.makers_of(dict(zip(runs, runs)))

    def plan(self, goals: list[str], overrides: list[str] = ()) -> list[Step]:
        """A goal is made by its config and the overrides. What it needs is made by its config too,
        unless it is there, or is a teacher and ships with the repository."""
        for name in goals:
            if name not in self.configs:
                raise UserError(f"unknown config '{name}'{nearest(name, self.configs)}")
        steps: dict[str, Step] = {}
        for name in sorted(goals, key=lambda name: self.configs[name].kind == "sweep"):
            self._add(name, goals, overrides, steps, ())
        return list(steps.values())

    def preparations(self, names: list[str]) -> list[Step]:
        """What there has to be for others that need what the configs `names` make."""
        steps: dict[str, Step] = {}
        for name in names:
            self._add(name, [], [], steps, ())
        return list(steps.values())

    def _add(
        self,
        name: str,
        goals: list[str],
        overrides: list[str],
        steps: dict[str, Step],
        above: tuple[str, ...],
    ) -> None:
        """Adds to `steps` what `name` needs, and then `name`, which the configs `above` need."""
        if name in above:
            raise UserError(f"configs need each other: {' -> '.join((*above, name))}")
        if name in steps:
            return
        config, given = self.configs[name], overrides if name in goals else []
        folder = Path(config.makes(given))
        if name not in goals and (step := self._present(name, folder)):
            steps[name] = step
            return
        needs = self.needs(name, given)
        for other in needs:
            self._add(other, goals, overrides, steps, (*above, name))
        alone = config.kind == "sweep"  # on all cores, when all there is to measure is there
        after = frozenset(o for o in (steps if alone else needs) if steps[o].job.command)
        sharers = _processes() if alone else None
        command = _command(config.kind, [str(config.file), *config.moved, *given], sharers)
        state = "there" if folder.exists() else "new"
        steps[name] = Step(Job(name, command, after, sharers), state, folder)

    def _present(self, name: str, folder: Path) -> Step | None:
        """What is needed and not made by its config: a run that is there goes on as it was begun,
        whatever overrides it was given then, and a teacher may ship with the repository."""
        config = self.configs[name]
        if config.kind == "run" and (folder / "config.yaml").is_file():
            goes_on = _command("run", [str(folder / "config.yaml"), f"run={folder}"])
            return Step(Job(name, () if _is_weights_alone(folder) else goes_on), "there", folder)
        if name == "teacher" and self.shipped and not folder.exists():
            given = dict(_strings(config.values))
            data = given.get("data.name", "none")
            if "data.codec" not in given and (self.shipped / data).is_dir():  # of pixels
                return Step(Job(name, ()), str(self.shipped / data), folder)
        return None


def copy_shipped(steps: list[Step]) -> None:
    """Puts the shipped teachers among `steps` to where their configs would put them."""
    for step in steps:
        if not step.job.command and step.state != "there":
            print(
                f"starting from the shipped teacher {step.state} (SHIPPED=no trains one)",
                file=sys.stderr,
            )
            with whole_folder(step.folder) as partial:
                shutil.copytree(step.state, partial, dirs_exist_ok=True)


def _is_weights_alone(folder: Path) -> bool:
    """Whether it is a shipped model: there is nothing to go on with."""
    from core.training.checkpoints import latest_checkpoint

    checkpoint = latest_checkpoint(folder)
    if checkpoint is None or (checkpoint / "state.pt").exists():
        return False
    return latest_checkpoint(folder) == checkpoint  # else its training has replaced it just now


def _processes() -> int:
    """Of a sweep: without a GPU, networks this small do not keep many cores busy."""
    import torch

    return 2 if cores() > 1 and not torch.cuda.is_available() else 1


def _command(kind: str, arguments: list[str], processes: int | None = None) -> tuple[str, ...]:
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m")
    return (sys.executable, "-m", *(launcher if processes else ()), SCRIPTS[kind], *arguments)
