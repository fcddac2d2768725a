"""scripts.ablate with its cells in the same process, so that a kill falls into their work and not
into the start of a process for each: python -m tests.kill.study FILE RUNS. Kills of a study whose
cells are processes are in tests/scripts/test_ablate.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from core.errors import command_line
from tests.helpers.study import run_here


@command_line
def main() -> None:
    file, os.environ["RUNS"] = sys.argv[1:]
    run_here(Path(file))


if __name__ == "__main__":
    main()
