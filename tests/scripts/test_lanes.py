"""Jobs side by side, as real processes that note down when they begin and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.lanes import Job, cores, run_jobs
from tests.helpers.command_lines import PATIENCE, ROOT, wait_for

NOTE = """
import os, sys, time
def note(what):
    with open(os.environ["LOG"], "a") as log:
        lane, threads = (os.environ.get(k, "none") for k in ("TQDM_POSITION", "OMP_NUM_THREADS"))
        print(what, sys.argv[1], lane, threads, file=log)
note("begin")
time.sleep(float(sys.argv[2]))
note("end")
sys.exit(int(sys.argv[3]))
"""
# Starts a child in its own process group and waits for it
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, file=open(sys.argv[1], "w"), flush=True)
child.wait()
"""


def job(name: str, seconds: float = 0, code: int = 0, after: str = "", **options) -> Job:
    command = (sys.executable, "-c", NOTE, name, str(seconds), str(code))
    return Job(name, command, frozenset(after.split()), **options)


@pytest.fixture
def log(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "TQDM_POSITION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    return lambda: [line.split() for line in (tmp_path / "log").read_text().splitlines()]


def order(log) -> list[str]:
    return [f"{what} {name}" for what, name, *_ in log()]


def test_one_lane_is_one_after_the_other(log):
    run_jobs([job("a", 0.2), job("b", after="a"), job("c")])
    assert order(log) == ["begin a", "end a", "begin b", "end b", "begin c", "end c"]
    assert {(lane, threads) for _, _, lane, threads in log()} == {("none", "none")}


def test_two_lanes_share_what_both_need_and_the_cores(log, monkeypatch):
    """While one makes it, the other does something else, and then both go on."""
    monkeypatch.setattr("scripts.lanes.cores", lambda: 6)
    jobs = [job("need", 1), job("x", 0.5, after="need"), job("y", 0.5, after="need"), job("z", 0.1)]
    run_jobs(jobs, lanes=2)
    lines = order(log)
    assert sorted(lines[:2]) == ["begin need", "begin z"] and lines[2:4] == ["end z", "end need"]
    assert sorted(lines[4:6]) == ["begin x", "begin y"] and len(lines) == 8
    assert {lane for _, _, lane, _ in log()} == {"0", "1"}
    assert {threads for *_, threads in log()} == {"3"}


def test_the_number_of_threads_may_be_given(log, monkeypatch):
    monkeypatch.setattr("scripts.lanes.cores", lambda: 6)
    run_jobs([job("sweep", sharers=2)])
    run_jobs([job("on one", sharers=1)])
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    run_jobs([job("a"), job("sweep", sharers=2)], lanes=2)
    assert [threads for what, *_, threads in log() if what == "begin"] == ["3", "6", "5", "5"]


def test_cores_are_those_that_may_be_used():
    assert cores() == int(subprocess.check_output(["nproc"], env={"PATH": os.environ["PATH"]}))


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_failure_stops_all(log, lanes, capfd):
    """The other lane and what waits."""
    started = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        run_jobs([job("bad", 0.3, code=3), job("long", 60), job("never", after="bad")], lanes)
    assert stop.value.code == 3 and time.monotonic() - started < 20
    assert not {"end long", "begin never"} & set(order(log))
    assert capfd.readouterr().err == "bad failed (exit code 3)\n"


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_failure_may_stop_nothing_but_what_needs_it(log, lanes, capfd):
    """When asked: what needs a failed job never begins, nor what needs that."""
    jobs = [job("bad", code=3), job("never", after="bad"), job("last", after="never"), job("good")]
    jobs += [job("next", after="good"), job("worse", code=4)]
    assert run_jobs(jobs, lanes, keep_going=True) == {"bad": 3, "worse": 4}
    begun = {line.removeprefix("begin ") for line in order(log) if line.startswith("begin")}
    assert begun == {"bad", "good", "next", "worse"}
    assert capfd.readouterr().err == "bad failed (exit code 3)\nworse failed (exit code 4)\n"


def test_a_killed_job_is_a_failure(log):
    killed = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(SystemExit) as stop:
        run_jobs([Job("killed", killed)])
    assert stop.value.code == 128 + 9


def is_running(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_leaves_no_orphans(tmp_path, number):
    """A signal to the parent alone ends both lanes and their children's children, with 130."""
    files = [tmp_path / "a", tmp_path / "b"]
    script = (
        "import sys\nfrom core.errors import command_line\n"
        "from scripts.lanes import Job, run_jobs\n"
        "jobs = [Job(f, (sys.executable, '-c', sys.argv[1], f)) for f in sys.argv[2:]]\n"
        "command_line(lambda: run_jobs(jobs, 2))()"
    )
    command = [sys.executable, "-c", script, PARENT, *map(str, files)]
    parent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: all(f.exists() and f.read_text().strip() for f in files), parent)
    children = [int(f.read_text()) for f in files]
    assert all(map(is_running, children))
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 130 and errors.startswith("interrupted;")
    assert not any(map(is_running, children))


def test_signals_that_are_ignored_stay_ignored(log):
    """As SIGHUP under nohup."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = f"import os; os.kill({os.getpid()}, 1)"
        run_jobs([Job("hang up", (sys.executable, "-c", hang_up)), job("on")])
        assert order(log) == ["begin on", "end on"]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)
