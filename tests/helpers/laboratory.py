"""What the shipped configs make, shrunken, made once for all tests that ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import lab
from core.config import read_config
from core.training.checkpoints import latest_checkpoint
from core.training.config import parse_run_config
from core.training.method import Context, Method
from tests.helpers.command_lines import run_script
from tests.helpers.shrunken import configs_of_methods, small_planner


class Laboratory:
    """The shrunken configs, and what was made of them so far. changes: see `small_configs`."""

    def __init__(self, folder: Path, **changes: Any):
        self.folder = folder
        # in float32, so that two processes may be compared with one
        usual = {"autocast": False, "checkpoint_every": 60, "samples_every": 10**6}
        self.planner = small_planner(folder, **usual | changes)
        self.names = configs_of_methods(self.planner)
        self.cache = str(folder / "cache")

    def file(self, method: str) -> Path:
        return self.planner.configs[self.names[method]].file

    def made(self, method: str) -> Path:
        """The run of a method, and before it what it starts from."""
        return self._make([self.names[method]])

    def needs(self, method: str) -> None:
        """Makes what a method starts from."""
        self._make(self.planner.needs(self.names[method]))

    def _make(self, names: list[str]) -> Path | None:
        for step in self.planner.plan(names) if names else ():
            if latest_checkpoint(step.folder) is None and not (step.folder / "pairs.json").exists():
                module, *arguments = step.job.command[2:]
                code, errors = run_script(module, *arguments)
                assert code == 0, errors
        return step.folder if names else None

    def built(self, method: str) -> Method:
        self.needs(method)
        cls = lab.method_class(method)
        config = parse_run_config(read_config(self.file(method)), cls, "test")
        device = torch.device("cpu")
        return cls.from_config(
            config.method, Context(config.data, config.model, config.train.seed, device, lab.load)
        )

    def learns(self, method: str) -> bool:
        return bool(self.built(method).stages())
