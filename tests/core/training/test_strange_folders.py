"""Run folders that others made, or that something happened to: one line, and nothing is lost."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

from core.config import dump_config, parse
from core.errors import UserError
from core.training.checkpoints import CHECKSUMS, latest_checkpoint
from core.training.config import LogConfig, check_run_folder
from core.training.origin import read_origin, read_price
from core.training.tracking import Tracker, wandb_id
from eval.report.training import loss_by_level
from lab import load
from tests.helpers.tiny import train_tiny

OPTIONS = dict(images=128, log={"checkpoint_every": 64})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_tiny(folder, **OPTIONS)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def edit(file, **changes):
    """Other values in a JSON file whose checksum is not asked for; None: the key goes."""
    values = json.loads(file.read_text()) | changes
    (file.parent / CHECKSUMS).unlink(missing_ok=True)
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("config.yaml", "", "key 'data' is missing"),
        ("config.yaml", "[1]", "a config is a mapping"),
        ("config.yaml", "a: *b", "aliases such as"),
        ("config.yaml", "data: {name: digits}\nmethod: [x]", "method: Input should be an object"),
        ("config.yaml", "data: {name: digits}", "key 'method' is missing"),
        ("price.json", "", "is not valid JSON"),
        ("price.json", "[" * 100_000, "is not valid JSON"),
        ("price.json", "[]", "price.json: config: Input should be an object"),
        ("price.json", '{"images": "many"}', "images: Input should be a valid integer"),
        ("price.json", '{"images": -1, "evals": 1, "seconds": 1, "config_sha256": ""}', "images: "),
        ("price.json", '{"images": 1, "evals": -1, "seconds": 1, "config_sha256": ""}', "evals: "),
        ("checksums.json", "[]", "holds no checksums"),
        ("checksums.json", "{", "is not valid JSON"),
        ("checksums.json", "{}", "was changed since it was written"),
    ],
)
def test_what_a_run_s_files_must_say(run, name, text, says):
    folder = run if name == "config.yaml" else latest_checkpoint(run)
    if name == "price.json":
        (folder / CHECKSUMS).unlink()
    (folder / name).write_text(text)
    with pytest.raises(UserError) as raised:
        load(run)
    assert says in str(raised.value) and name.split(".")[0] in str(raised.value)


@pytest.mark.parametrize("name", ["price.json", "ema.safetensors"])
def test_files_that_are_missing(run, name):
    (latest_checkpoint(run) / name).unlink()
    with pytest.raises((UserError, FileNotFoundError), match=name):
        load(run)


def test_a_price_of_an_earlier_version_is_read(run):
    checkpoint = latest_checkpoint(run)
    edit(checkpoint / "price.json", processes=None, more="x")
    assert read_price(checkpoint).processes == 1
    assert load(run).train_images == 128


def test_a_price_that_was_changed_is_refused(run):
    """It says what every row will say of the training."""
    file = latest_checkpoint(run) / "price.json"
    file.write_text(file.read_text().replace("128", "129"))
    with pytest.raises(UserError, match=r"price.json was changed since it was written"):
        load(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("inputs"),
        lambda state: state.update(stage=7),
        lambda state: state.update(images="many"),
        lambda state: state.update(images=-64),
        lambda state: state.update(roles={}),
        lambda state: state["roles"]["student"].pop("optimizer"),
        lambda state: state["roles"]["student"]["optimizer"]["state"][0].pop("exp_avg"),
        lambda state: state["roles"]["student"]["optimizer"]["state"][0].update(
            exp_avg=torch.zeros(3)
        ),
        lambda state: state["roles"]["student"].update(averages={"other": {}}),
        lambda state: state["roles"]["student"].update(averages=[1]),
    ],
)  # fmt: skip
def test_a_state_of_something_else(run, change):
    file = latest_checkpoint(run) / "state.pt"
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)
    (file.parent / CHECKSUMS).unlink()
    with pytest.raises(UserError, match="state.pt is no state of this run"):
        train_tiny(run, **OPTIONS)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\3\4", b"\x80\x02]q\0."])
def test_a_state_that_is_none(run, content):
    file = latest_checkpoint(run) / "state.pt"
    file.write_bytes(content)
    (file.parent / CHECKSUMS).unlink()
    with pytest.raises(UserError, match=r"state.pt is (damaged or incomplete|no state)"):
        train_tiny(run, **OPTIONS)


def test_folders_with_names_like_checkpoints_stay_and_are_none(run):
    """A user's own, dated, and a file."""
    folder = run / "checkpoints"
    for name in ("2026-11-25 notes", "2026-11", "000000000999-99x"):
        (folder / name).mkdir()
        (folder / name / "x").write_text("mine")
    (folder / "000000000998-01").write_text("a file")
    train_tiny(run, **OPTIONS)
    assert latest_checkpoint(run).name == "000000000128-01"
    assert (folder / "2026-11" / "x").read_text() == "mine"
    assert (folder / "000000000998-01").is_file()


def test_lines_of_metrics_that_are_none_go_and_the_others_stay(run):
    """As the run goes on, and in the report."""
    file = run / "metrics.jsonl"
    whole = file.read_text()
    assert whole
    odd = ["{}", "[]", "null", '{"images": "x"}', '{"images": 1e400}', "[" * 100_000, '{"ima']
    file.write_text("\n".join([*odd, whole]))
    assert len(loss_by_level(run)["images"]) == len(whole.splitlines())
    Tracker(train_tiny(run, **OPTIONS).config, 128, 128, 128, ["train"], True).close()
    assert file.read_text() == whole


@pytest.mark.parametrize(
    "run", ["runs/a", "/runs/a", "a b", "a:b", "/", "it's", "a?b#c;d,e", "é\n", "x" * 300, " a "]
)
def test_wandb_takes_the_name_of_any_folder(run):
    wandb = pytest.importorskip("wandb")
    assert wandb.Settings(run_id=wandb_id(run)).run_id == wandb_id(run)
    assert wandb_id("runs/a") == "runs-a"  # as of earlier versions
    assert wandb_id(run) != wandb_id(f"{run}:")


def test_names_of_projects_that_wandb_refuses():
    with pytest.raises(UserError, match="wandb_project: String should match pattern"):
        parse(LogConfig, {"wandb_project": "a/b"}, "test")


def test_names_like_numbers_are_read_as_they_were_written(tmp_path):
    """YAML 1.1, which PyYAML writes, knows 1e5 as a text; a config's reader takes it for a number."""
    trainer = train_tiny(tmp_path / "run", images=64)
    named = trainer.config.data.model_copy(update={"root": "1e5"})
    config = trainer.config.model_copy(update={"data": named, "run": "1e-4"})
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    assert yaml.safe_load(dump_config(config))["run"] == "1e-4"
    assert read_origin(tmp_path / "run").data.root == "1e5"
    assert check_run_folder(config, tmp_path / "run")
