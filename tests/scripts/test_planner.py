"""Plans of the shipped configs, and of small ones: what is made, by which command, in which
order."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from core.errors import UserError
from scripts.planner import Planner, read_configs
from tests.helpers.command_lines import ROOT, refused, run_script
from tests.helpers.tiny import train_tiny

SHIPPED = ROOT / "teachers" / "shipped"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RUNS", str(tmp_path / "my runs"))
    return tmp_path / "my runs"


def plan(dataset: str, goals: list[str], runs: Path, *overrides: str, shipped=SHIPPED) -> list:
    """(name, state, command without its interpreter, with the folder of runs as RUNS)."""
    steps = Planner(read_configs(dataset, str(runs)), shipped).plan(goals, list(overrides))
    return [
        (s.job.name, s.state, " ".join(s.job.command[2:]).replace(str(runs), "RUNS")) for s in steps
    ]


def test_from_nothing_the_whole_chain_is_made(runs):
    configs = "configs/digits"
    assert plan("digits", ["distilled_flow"], runs, "optimizer.lr=1") == [
        ("flow", "new", f"scripts.train {configs}/flow.yaml run=RUNS/flow"),
        (
            "flow_pairs",
            "new",
            f"scripts.pairs {configs}/flow_pairs.yaml run=RUNS/flow out=RUNS/flow-pairs",
        ),
        (
            "reflow",
            "new",
            f"scripts.train {configs}/reflow.yaml run=RUNS/reflow method.init=RUNS/flow "
            "method.pairs=RUNS/flow-pairs",
        ),
        (
            "reflow_pairs",
            "new",
            f"scripts.pairs {configs}/reflow_pairs.yaml run=RUNS/reflow out=RUNS/reflow-pairs",
        ),
        (
            "distilled_flow",
            "new",
            f"scripts.train {configs}/distilled_flow.yaml run=RUNS/distilled-flow "
            "method.init=RUNS/reflow method.pairs=RUNS/reflow-pairs optimizer.lr=1",
        ),
    ]


def test_the_default_folder_needs_no_overrides():
    (step,) = Planner(read_configs("digits", "runs/digits"), None).plan(["flow"])
    assert step.job.command[2:] == ("scripts.train", "configs/digits/flow.yaml")


def test_a_teacher_ships_or_is_trained(runs):
    made = plan("digits", ["consistency"], runs)
    assert [(name, state) for name, state, _ in made] == [
        ("teacher", str(SHIPPED / "digits")),
        ("consistency", "new"),
    ]
    assert made[0][2] == ""
    student = "run=RUNS/consistency method.teacher=RUNS/teacher"
    trained = [
        ("teacher", "new", "scripts.train configs/digits/teacher.yaml run=RUNS/teacher"),
        ("consistency", "new", f"scripts.train configs/digits/consistency.yaml {student}"),
    ]
    assert plan("digits", ["consistency"], runs, shipped=None) == trained
    assert plan("cifar10", ["consistency"], runs)[0][1] == "new"  # none ships
    assert plan("digits", ["teacher"], runs) == trained[:1]  # who asks for one gets it trained
    (teacher, *_) = plan("fashion_mnist-budget", ["progressive-3e5"], runs)
    assert teacher[:2] == ("teacher", str(SHIPPED / "fashion_mnist"))  # by the name of its data


def test_a_teacher_in_latents_is_trained_after_its_autoencoder(runs):
    """Though one of pixels ships for these data."""
    made = plan("digits-latents", ["consistency"], runs)
    assert [(name, state) for name, state, _ in made] == [
        ("autoencoder", "new"), ("teacher", "new"), ("consistency", "new"),
    ]  # fmt: skip
    assert made[1][2].endswith("data.codec=RUNS/autoencoder run=RUNS/teacher")


def test_an_override_that_names_another_teacher_switches_the_need_off(runs):
    (step,) = plan("digits", ["consistency"], runs, "method.teacher=elsewhere")
    assert step[0] == "consistency" and step[2].endswith("method.teacher=elsewhere")
    names = [name for name, *_ in plan("digits", ["reflow"], runs, "method.pairs=mine")]
    assert names == ["flow", "reflow"]


def test_what_is_there_goes_on_as_it_was_begun(runs):
    """With its own config, whatever that says, and unlike the run that was asked for."""
    for name in ("teacher", "consistency"):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.yaml").write_text("run: elsewhere\n")
    teacher, student = plan("digits", ["consistency"], runs)
    assert teacher == (
        "teacher",
        "there",
        "scripts.train RUNS/teacher/config.yaml run=RUNS/teacher",
    )
    assert student[:2] == ("consistency", "there") and "configs/digits/consistency" in student[2]


def test_weights_without_a_state_are_used_as_they_are(runs):
    """A copy of a shipped teacher, with its card or without, also with SHIPPED=no; not a run whose
    training may go on."""
    shutil.copytree(SHIPPED / "digits", runs / "teacher")
    for shipped in (SHIPPED, None):
        assert plan("digits", ["progressive"], runs, shipped=shipped)[0] == ("teacher", "there", "")
    (runs / "teacher" / "card.json").unlink()
    assert plan("digits", ["progressive"], runs)[0] == ("teacher", "there", "")
    shutil.rmtree(runs / "teacher")
    train_tiny(runs / "teacher", images=64)
    assert "scripts.train" in plan("digits", ["progressive"], runs)[0][2]


@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist", "cifar10"])
def test_a_folder_is_a_suite(dataset, runs):
    """Its runs but for those that others need, found by content; each once, after what it needs."""
    texts = {f.stem: f.read_text() for f in (ROOT / "configs" / dataset).glob("*.yaml")}
    made = {
        name for name, text in texts.items() if re.search("^(method|count):", text, re.MULTILINE)
    }
    planner = Planner(read_configs(dataset, str(runs)), None)
    ends = planner.everything()
    assert {"consistency", "distilled_flow", "gan"} <= set(ends)
    assert not {"teacher", "flow", "reflow", "flow_pairs", "reflow_pairs"} & set(ends)
    jobs = [step.job for step in planner.plan(ends)]
    names = [job.name for job in jobs]
    assert sorted(names) == sorted(made - {"base"})
    assert all(set(job.after) <= set(names[:i]) for i, job in enumerate(jobs))
    after = {job.name: set(job.after) for job in jobs}
    assert after["consistency"] == after["progressive"] == {"teacher"}
    assert after["reflow"] == {"flow", "flow_pairs"} and after["gan"] == set()


def test_the_quickstart_trains_what_it_measures(runs):
    planner = Planner(read_configs("digits", str(runs)), None)
    names = planner.measured_by("quickstart")
    assert {"teacher", "flow", "distilled_flow", "meanflow"} <= set(names)
    assert len(names) == 10 and "reflow_pairs" not in names
    assert {step.job.name for step in planner.plan(names)} == {*names, "flow_pairs", "reflow_pairs"}


def test_sweeps_are_those_of_the_folders_runs():
    def sweeps(dataset: str) -> list[str]:
        return Planner(read_configs(dataset), None).sweeps()

    assert sweeps("digits") == [
        "curve",
        "quickstart",
    ]  # inception-precision measures a shipped teacher
    assert sweeps("fashion_mnist") == [
        "curve", "curve-1000-images", "curve-1000-steps", "curve-inception",
        "quickstart", "solvers",
    ]  # fmt: skip


def test_two_processes_measure_and_share_the_cores_alone(runs, monkeypatch):
    """After all runs, one sweep after the other, their outputs moved as the runs."""
    monkeypatch.setattr("scripts.planner.cores", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    planner = Planner(read_configs("fashion_mnist", str(runs)), None)
    steps = planner.plan(["solvers", "curve", "gan"])
    gan, solvers, curve = (step.job for step in steps)
    assert solvers.after == {"gan"} and curve.after == {"gan", "solvers"}
    assert gan.sharers is None and solvers.sharers == 2
    assert " ".join(solvers.command[1:]) == (
        "-m torch.distributed.run --standalone --nproc_per_node 2 -m scripts.evaluate "
        f"configs/fashion_mnist/solvers.yaml out={runs}/solvers/curves.jsonl runs={runs}"
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    (step,) = planner.plan(["curve"])
    assert step.job.sharers == 1


def test_the_study_measures_every_student_it_trains():
    planner = Planner(read_configs("fashion_mnist-budget"), None)
    measured = [entry["run"] for entry in planner.configs["curve"].values["entries"]]
    assert sorted(planner.everything()) == sorted(measured)
    for name in measured:
        config = planner.configs[name]
        method, budget = name.split("-")
        assert config.makes() == f"runs/fashion_mnist-budget/{name}"
        assert config.values["method"]["name"] == method
        assert config.values["budget"] == {"evals": float(budget)}


def test_only_paths_below_the_folder_of_runs_move(tmp_path, monkeypatch):
    """Also when they lie deep in sections, and the folder itself."""
    monkeypatch.setenv("CONFIGS", str(tmp_path))
    (tmp_path / "data").mkdir()
    values = (
        "run: runs/data/a\nmethod: {from: {x: runs/data}, y: runs/data-2/b, z: other/runs/data/c}\n"
    )
    (tmp_path / "data" / "a.yaml").write_text(values)
    config = read_configs("data", "new")["a"]
    assert config.moved == ["run=new/a", "method.from.x=new"]
    assert config.values["method"]["y"] == "runs/data-2/b" and config.makes() == "new/a"


def test_configs_that_cannot_be_planned(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFIGS", str(tmp_path))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.yaml").write_text("run: runs/data/a\nmethod: {init: runs/data/b}\n")
    (folder / "b.yaml").write_text("run: runs/data/b\nmethod: {init: runs/data/a}\n")
    with pytest.raises(UserError, match="configs need each other: a -> b -> a"):
        Planner(read_configs("data"), None).plan(["a"])
    (folder / "b.yaml").write_text("run: runs/data/a/\nmethod: {}\n")
    with pytest.raises(UserError, match="b.yaml makes runs/data/a, as a.yaml does"):
        Planner(read_configs("data"), None)
    (folder / "b.yaml").write_text("method: {}\n")
    with pytest.raises(UserError, match="b.yaml: key 'run' is missing"):
        Planner(read_configs("data"), None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("digit consistency", "unknown data set 'digit' (did you mean 'digits'?)"),
        (
            "digits distilled-flow",
            "unknown config 'distilled-flow' (did you mean 'distilled_flow'?)",
        ),
        ("digits", "nothing to do: name a config of digits (known: add, align_your_flow,"),
        ("digits --all budget.evals=5", "'budget.evals=5' beside --all, --for or --sweeps"),
        ("digits --for flow", "unknown sweep 'flow'"),
        ("digits vae gan budget.evals=5", "'budget.evals=5': give it with the name of one config"),
        ("digits vae --lanes 0", "--lanes 0: at least 1"),
    ],
)
def test_mistakes(runs, arguments, says):
    assert says in refused(runs.parent, "recipe", *arguments.split())


def test_a_dry_run_makes_nothing(runs, capsys):
    code, errors = run_script("recipe", "digits", "progressive", "--dry-run")
    assert code == 0 and errors == "" and not runs.exists()
    teacher, student = capsys.readouterr().out.splitlines()
    assert teacher.split() == ["teacher", "teachers/shipped/digits", "-"]
    assert student.startswith("progressive        new    python -m scripts.train configs/digits/")
    assert f"'run={runs}/progressive' 'method.teacher={runs}/teacher'" in student


def test_a_study_beside_the_configs_makes_nothing(tmp_path, runs, monkeypatch):
    """Its values are those of the run that it is based on, and would make the same folder."""
    shutil.copytree(ROOT / "configs" / "digits", tmp_path / "configs" / "digits")
    study = tmp_path / "configs" / "digits" / "study.yaml"
    study.write_text("base: flow.yaml\nquestion: why?\nseeds: [0]\n")
    monkeypatch.setenv("CONFIGS", str(tmp_path / "configs"))
    planner = Planner(read_configs("digits", str(runs)), SHIPPED)
    assert "study" not in planner.configs
    assert [step.job.name for step in planner.preparations(["reflow", "flow_pairs"])] == [
        "flow",
        "flow_pairs",
        "reflow",
    ]


SEEDS = {
    "a.yaml": "run: runs/data/a\nmethod: {init: runs/data/t}\n",
    "t.yaml": "run: runs/data/t\nmethod: {}\ntrain: {seed: 0}\n",
    "s.yaml": "out: runs/data/s.jsonl\nruns: runs/data\nentries:\n  - {run: t, seeds: [0]}\n"
    "  - {run: a}\n",
}


def test_runs_of_other_seeds_are_planned_as_sweeps_measure_them(tmp_path, monkeypatch):
    """From what the run starts from; a sweep's own seeds, or those of the command, but for entries
    with seeds of their own."""
    (tmp_path / "data").mkdir()
    for name, text in SEEDS.items():
        (tmp_path / "data" / name).write_text(text)
    monkeypatch.setenv("CONFIGS", str(tmp_path))
    assert set(read_configs("data")) == {"a", "s", "t"}
    configs = read_configs("data", "new", seeds=(0, 2))
    planner = Planner(configs, None)
    assert planner.measured_by("s") == ["t", "a", "a-seed2"]
    assert planner.everything() == ["a", "a-seed2"]
    t, a, other, sweep = (step.job for step in planner.plan([*planner.everything(), "s"]))
    assert (t.name, other.name, other.after) == ("t", "a-seed2", frozenset({"t"}))
    assert other.command[-5:] == (
        "scripts.train", str(tmp_path / "data" / "a.yaml"), "method.init=new/t", "train.seed=2",
        "run=new/a-seed2",
    )  # fmt: skip
    assert (
        a.command[-1] == "run=new/a"
        or a.command[-1] == "method.init=new/t"
        and "seeds=[0, 2]" in sweep.command
    )
    sweep_file = tmp_path / "data" / "s.yaml"
    sweep_file.write_text(SEEDS["s.yaml"] + "seeds: [5]\n")
    assert Planner(read_configs("data"), None).measured_by("s") == ["t", "a-seed5"]


def test_seeds_that_cannot_be_are_refused(runs, monkeypatch):
    for seeds, says in (("0,x", "SEEDS 0,x: give numbers"), ("1,1", "SEEDS=1,1: from 0 up")):
        monkeypatch.setenv("SEEDS", seeds)
        assert says in refused(runs.parent, "recipe", "digits", "--for", "quickstart")
