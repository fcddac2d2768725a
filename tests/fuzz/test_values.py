"""Every config class under random mistakes: a config, or one line that says which key. What parses
is built and tried for one step, which works or is refused in one line too.

HYPOTHESIS_PROFILE=long tries many more.
"""

from __future__ import annotations

import argparse
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

import lab
from core.config import dump_config, parse, read_config
from core.data import DataConfig
from core.errors import UserError
from core.noise import Noise
from core.pairs import generate_pairs
from core.sampling.sample import condition_in_turn, sample
from core.setting import Setting
from core.training.config import check_run_folder, parse_run_config
from core.training.method import Context
from core.training.trainer import Trainer
from eval.ablation.table import table
from eval.sweep.config import SweepConfig
from eval.sweep.points import PointSampler
from scripts.ablate import read_plan
from scripts.ablate_cell import Task, write_task
from scripts.ablate_plan import plan_words
from scripts.pairs_config import PairsConfig
from scripts.setting_options import add_setting_options, chosen_setting, chosen_steps
from scripts.train import resolved
from tests.fuzz.mistakes import Enough, examples, with_mistakes, works_or_one_line
from tests.helpers.study import write_study

pytestmark = pytest.mark.timeout(7200)  # the long profile takes its time
FIRST, *OTHERS = lab.METHODS
METHODS = [FIRST, *(pytest.param(method, marks=pytest.mark.slow) for method in OTHERS)]


@pytest.fixture
def away(tmp_path, monkeypatch) -> Path:
    """The current folder: mistakes in names of folders lead nowhere else."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def enough(*_: object, **__: object) -> None:
    raise Enough


def one_step(values: dict, method: str) -> None:
    """Builds the method and its trainer, and takes a step of training."""
    cls = lab.method_class(method)
    config = parse_run_config(values, cls, "test")
    yaml.safe_load(dump_config(config))
    check_run_folder(config, Path(config.run))
    accelerator = Accelerator(cpu=True)
    context = Context(config.data, config.model, config.train.seed, accelerator.device, lab.load)
    built = cls.from_config(config.method, context)
    trainer = Trainer(config, built, accelerator)
    if not trainer.stages:
        return
    trainer._begin_stage()
    trainer.folder.mkdir(parents=True)  # where the batch goes that made it diverge
    try:
        for _ in range(2):
            trainer._step()
    finally:
        shutil.rmtree(trainer.folder)
    for role in built.roles.values():
        for name, tensor in role.network.state_dict().items():
            assert torch.isfinite(tensor).all(), f"{name} is not finite, and nothing was said"


@pytest.mark.parametrize("method", METHODS)
def test_runs(laboratory, away, method):
    laboratory.needs(method)
    cls = lab.method_class(method)
    config = parse_run_config(read_config(laboratory.file(method)), cls, "test")
    whole = yaml.safe_load(dump_config(config)) | {"run": str(away / "run")}
    assert works_or_one_line(lambda: one_step(whole, method))

    @examples(0.15)
    @given(with_mistakes(whole))
    def tried(values: dict) -> None:
        with torch.random.fork_rng():
            works_or_one_line(lambda: one_step(values, method))
        assert not (away / "run").exists()

    tried()


def test_sweeps(laboratory, away, monkeypatch):
    monkeypatch.setattr(PointSampler, "_batch", enough)
    run = str(laboratory.made("ddpm"))
    values = {"out": str(away / "curves.jsonl"), "extractor": "digits-cnn", "n": 8, "runs": None,
              "cache": laboratory.cache, "device": "cpu", "data": {"name": "digits"},
              "entries": [{"run": run, "samplers": ["ddim"], "steps": [1, 2],
                           "guidance_scales": [1.0], "options": {"eta": 0.0}}]}  # fmt: skip
    whole = yaml.safe_load(dump_config(parse(SweepConfig, values, "test")))
    assert works_or_one_line(lambda: lab.measure(parse(SweepConfig, whole, "test")))

    @examples(0.5)
    @given(with_mistakes(whole))
    def tried(values: dict) -> None:
        with suppress(FileNotFoundError):
            (away / "curves.jsonl").unlink()
        works_or_one_line(lambda: lab.measure(parse(SweepConfig, values, "test")))

    tried()


def test_pairs(laboratory, away, monkeypatch):
    run = lab.load(laboratory.made("rectified-flow"))
    monkeypatch.setattr("core.pairs.save_file", enough)
    values = {"run": "run", "out": "pairs", "count": 4, "steps": 2, "shard": 2}
    whole = yaml.safe_load(dump_config(parse(PairsConfig, values, "test")))

    def act(values: dict) -> None:
        config = parse(PairsConfig, values, "test")
        generate_pairs(run, away / "pairs", **config.model_dump(exclude={"run", "out", "weights"}))

    assert works_or_one_line(lambda: act(whole))

    @examples(0.5)
    @given(with_mistakes(whole))
    def tried(values: dict) -> None:
        shutil.rmtree(away / "pairs", ignore_errors=True)
        works_or_one_line(lambda: act(values))
        assert not list(away.rglob("*.partial"))

    tried()


@pytest.mark.parametrize("method", METHODS)
def test_settings(laboratory, away, method):
    """What is sampled is finite, or refused."""
    run = lab.load(laboratory.made(method))
    model, indices = run.model, torch.arange(2)
    whole = run.spec.setting.model_dump(mode="json") | {"options": {"eta": 0.5}, "steps": 1}

    def act(values: dict) -> None:
        setting = parse(Setting, values, "test")
        calls = 0

        def count(progress) -> None:
            nonlocal calls
            calls += 1
            if calls == 20:
                raise Enough

        x = sample(model, setting, Noise(0, indices), condition_in_turn(run.spec, indices), count)
        with pytest.raises(UserError) if not torch.isfinite(x).all() else suppress():
            lab.sample(run, setting, n=2)

    @examples(0.15)
    @given(with_mistakes(whole))
    def tried(values: dict) -> None:
        works_or_one_line(lambda: act(values))

    tried()


def test_studies(away, monkeypatch):
    """What is planned can be written as tasks and read again."""
    monkeypatch.setenv("RUNS", str(away / "runs"))
    file = write_study(away, seeds=[0, 1])
    whole = yaml.safe_load(file.read_text()) | {"except": [], "out": str(away / "out")}
    whole |= yaml.safe_load((away / "configs" / "digits" / "tiny.yaml").read_text())
    whole["sweep"] |= {"keep_samples": 2, "guidance_scales": [1.0]}

    def act(values: dict) -> None:
        with suppress(yaml.YAMLError):
            file.write_text(yaml.safe_dump(values), errors="surrogatepass")
        planned = read_plan(file, [])
        assert len(planned.study.trials) >= 2
        plan_words(planned.study, planned.steps, planned.runs)
        for trial in planned.study.trials[:2]:
            task = write_task(trial, resolved(trial.values, "test"))
            again = parse(Task, read_config(task), "test")
            assert again.sweep == trial.sweep and resolved(again.run, "test").run == str(
                trial.folder
            )
        assert table(planned.study)

    assert works_or_one_line(lambda: act(whole))

    @examples(0.5)
    @given(with_mistakes(whole))
    def tried(values: dict) -> None:
        works_or_one_line(lambda: act(values))
        assert not (away / "runs" / "digits").exists()

    tried()


words = st.sampled_from(("", ",", "1,", "x", "1e9", "-1", "nan", "inf", "ddim", "ddim,heun", "1,2",
                         "eta=", "=1", "eta=1e400", "eta=nan", "eta=1", "é", "\0", "0x1", "9" * 5000,
                         "٣", "1_0", " 1 "))  # fmt: skip


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("sampler", "steps", "grid", "guidance-scale", "threshold", "option")),
            st.one_of(words, st.text(max_size=5)),
        ),
        max_size=4,
    )
)
def test_settings_of_command_lines(pairs):
    parser = argparse.ArgumentParser()
    add_setting_options(parser)
    a = parser.parse_args([f"--{name}={text}" for name, text in pairs])

    def act() -> None:
        chosen_steps(a)
        chosen = chosen_setting(a, Setting(sampler="ddim", steps=4))
        assert 1 <= chosen.steps and abs(chosen.guidance_scale) <= 1000

    works_or_one_line(act)


def test_data(away):
    from PIL import Image

    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (away / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7)).save(away / "pictures" / name)
    values = {"name": "folder", "root": str(away / "pictures"), "side": 8}
    whole = parse(DataConfig, values, "test").model_dump(mode="json")
    whole |= {"fit": "pad", "background": "#102030", "alpha": "keep", "skip_unreadable": True}
    assert works_or_one_line(lambda: parse(DataConfig, whole, "test").load())

    @examples(1.0)
    @given(with_mistakes(whole), st.sampled_from(("train", "test", "x")))
    def tried(values: dict, split: str) -> None:
        works_or_one_line(lambda: parse(DataConfig, values, "test").load(split))

    tried()
