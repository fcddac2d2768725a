"""scripts/train.sh from end to end: tiny runs from a folder of configs, killed in the middle and
run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from core.training.checkpoints import latest_checkpoint
from tests.helpers.command_lines import PATIENCE, ROOT, run_script, wait_for
from tests.helpers.runs import assert_same_bits, images_of
from tests.helpers.tiny import tiny_config

IMAGES = 6400


@pytest.fixture
def configs(tmp_path) -> Path:
    folder = tmp_path / "configs" / "tiny"
    folder.mkdir(parents=True)
    flow = tiny_config("runs/tiny/flow", "rectified-flow", "u", "rectified", images=IMAGES)
    pairs = {"run": "runs/tiny/flow", "out": "runs/tiny/flow-pairs", "count": 96, "steps": 2}
    starts = {"init": "runs/tiny/flow", "pairs": "runs/tiny/flow-pairs"}
    reflow = tiny_config("runs/tiny/reflow", "rectified-flow", method=starts, lr=1.0)
    for name, values in {"flow": flow, "flow_pairs": pairs, "reflow": reflow}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder


def start(tmp_path: Path) -> subprocess.Popen:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "VENV": "none", "OMP_NUM_THREADS": "1"}
    environment |= {"CONFIGS": str(tmp_path / "configs"), "RUNS": str(tmp_path / "runs")}
    return subprocess.Popen(
        ["bash", "scripts/train.sh", "tiny", "reflow", "optimizer.lr=1e-3"],
        cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_recipe_killed_in_the_middle_goes_on(tmp_path, configs):
    """The same bits as by hand, each run by its script."""
    runs, other = tmp_path / "runs", tmp_path / "by hand"
    first = start(tmp_path)
    wait_for(lambda: latest_checkpoint(runs / "flow"), first)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=PATIENCE)
    assert first.returncode == 130 and "the same command goes on" in errors
    assert images_of(latest_checkpoint(runs / "flow")) < IMAGES
    assert not (runs / "flow-pairs").exists()

    again = start(tmp_path)
    _, errors = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, errors
    for script, name, *overrides in (
        ("train", "flow", f"run={other}/flow", "--cpu"),
        ("pairs", "flow_pairs", f"run={other}/flow", f"out={other}/flow-pairs"),
        ("train", "reflow", f"run={other}/reflow", f"method.init={other}/flow",
         f"method.pairs={other}/flow-pairs", "optimizer.lr=1e-3", "--cpu"),
    ):  # fmt: skip
        code, errors = run_script(script, configs / f"{name}.yaml", *overrides)
        assert code == 0, errors
    for name in ("flow", "reflow"):
        assert_same_bits(runs / name, other / name)
    shard = Path("flow-pairs", "000000.safetensors")
    assert (runs / shard).read_bytes() == (other / shard).read_bytes()


def test_a_failing_run_is_a_failing_recipe(tmp_path, configs):
    file = configs / "flow.yaml"
    file.write_text(file.read_text() + "mistake: 1\n")
    done = start(tmp_path)
    _, errors = done.communicate(timeout=PATIENCE)
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    assert "unknown key 'mistake'" in errors and "flow failed (exit code 2)" in errors


def test_a_run_that_fails_does_not_end_the_others_of_all(tmp_path, configs):
    (configs / "flow_pairs.yaml").unlink()
    (configs / "reflow.yaml").unlink()
    absent = tiny_config("runs/tiny/absent") | {"data": {"name": "folder", "root": "/nowhere"}}
    (configs / "absent.yaml").write_text(yaml.safe_dump(absent))
    environment = {"RUNS": str(tmp_path / "runs"), "CONFIGS": str(tmp_path / "configs")}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.recipe", "tiny", "--all"],
        cwd=ROOT,
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "absent failed (exit code 2)" in done.stderr
    assert images_of(latest_checkpoint(tmp_path / "runs" / "flow")) == IMAGES
