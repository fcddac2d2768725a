"""kill -9 at random moments, and the same command again: a few here, many by python -m tests.kill."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers.command_lines import ROOT


def kill(*arguments: str) -> str:
    """The table of python -m tests.kill."""
    command = [sys.executable, "-m", "tests.kill", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def counted(table: str, kind: str) -> int:
    """Kills of that kind in the table."""
    lines = [line for line in table.splitlines() if line.startswith(kind)]
    return sum(int(line.split()[-4]) for line in lines)


def test_a_few_kills_change_nothing():
    kinds = ("train", "pairs", "sweep")
    table = kill("--times", "4", "--short", "--what", ",".join(kinds))
    assert [counted(table, kind) for kind in kinds] == [4, 4, 4], table


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills_change_nothing():
    table = kill("--times", "40", "--what", "train,pairs,sweep,ablation,plot,report")
    assert counted(table, "train") == 40, table


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_of_the_launcher_and_of_a_rank_change_nothing():
    assert counted(kill("--times", "9", "--what", "two"), "two") == 9
