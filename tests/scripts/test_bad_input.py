"""Bad input: one clear line on stderr, exit code 2, nothing written or lost. Each through the real
command line."""

from __future__ import annotations

import pytest
import yaml

from core.training.checkpoints import latest_checkpoint
from tests.helpers.command_lines import refused, tree
from tests.helpers.tiny import tiny_config, train_tiny


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(tiny_config(tmp_path / "run")))
    return file


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.lrr=1e-3", ["unknown key 'optimizer.lrr'", "did you mean 'lr'?"]),
        ("method.weigth=simple", ["unknown key 'method.weigth'", "did you mean 'weight'?"]),
        ("budgett.images=5", ["unknown key 'budgett'", "did you mean 'budget'?"]),
        ("optimizer.lr=fast", ["optimizer.lr", "valid number", "'fast'"]),
        ("budget.images=2.5", ["budget.images", "valid integer", "2.5"]),
        ("model.path=vp-cosin", ["model.path", "'vp-cosine'"]),
        ("method.name=dpm", ["unknown method 'dpm'", "did you mean 'ddpm'?"]),
        ("data.name=fashion", ["unknown data set 'fashion'", "did you mean 'fashion_mnist'?"]),
        ("model.network.widths=[8,8,8,8]", ["side 8", "stride 16", "network.patch"]),
        ("budget.evals=5", ["exactly one of budget.images and budget.evals"]),
        ("train.accumulate=3", ["batch_size must be a positive multiple of accumulate"]),
        ("nonsense", ["override 'nonsense' is not of the form key=value"]),
        (
            "model.prediction=eps method.weight=truncated-snr",
            ["unbounded for model.prediction=eps"],
        ),
    ],
)
def test_config_mistakes(tmp_path, config, override, says):
    line = refused(tmp_path, "train", config, *override.split(" "), "--cpu")
    for words in says:
        assert words in line


def test_missing_config_and_missing_data(tmp_path, config):
    assert "does not exist (did you mean 'c.yaml'?)" in refused(
        tmp_path, "train", tmp_path / "cc.yaml"
    )
    line = refused(
        tmp_path, "train", config, "data.name=fashion_mnist", f"data.root={tmp_path}", "--cpu"
    )
    assert "train-images-idx3-ubyte.gz" in line and str(tmp_path) in line
    line = refused(
        tmp_path,
        "train",
        config,
        "data.name=folder",
        f"data.root={tmp_path}/none",
        "data.side=8",
        "--cpu",
    )
    assert "holds no images" in line


def test_another_config_in_the_same_folder(tmp_path, config):
    train_tiny(tmp_path / "run")
    line = refused(tmp_path, "train", config, "optimizer.lr=0.5", "--cpu")
    assert "optimizer.lr is 0.001 there and 0.5 here" in line
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    assert "is not a run" in refused(tmp_path, "train", config, f"run={tmp_path}/thesis", "--cpu")


def test_broken_checkpoints(tmp_path, config):
    train_tiny(tmp_path / "run", images=320)
    checkpoint = latest_checkpoint(tmp_path / "run")
    weights, state = checkpoint / "ema.safetensors", checkpoint / "state.pt"
    whole = weights.read_bytes()

    weights.write_bytes(whole[:-100])
    assert "ema.safetensors was changed since it was written" in refused(
        tmp_path, "sample", tmp_path / "run", "--steps", "2", "--out", tmp_path / "x.png"
    )
    weights.write_bytes(whole)

    state.write_bytes(state.read_bytes()[:200])
    values = tiny_config(tmp_path / "run", images=320)
    config.write_text(yaml.safe_dump(values))
    assert "state.pt was changed since it was written" in refused(
        tmp_path, "train", config, "--cpu"
    )


def test_checkpoint_of_another_architecture(tmp_path):
    from core.errors import UserError
    from core.weights import load_weights, read_spec

    train_tiny(tmp_path / "run", images=64)
    file = latest_checkpoint(tmp_path / "run") / "ema.safetensors"
    spec = read_spec(file)
    wider = spec.model_copy(update={"network": spec.network.model_copy(update={"widths": (12,)})})
    with pytest.raises(
        UserError, match=r"another architecture: tensor '.*' is \(8.*in the checkpoint and \(12"
    ):
        load_weights(wider.build().network, file)
    deeper = spec.model_copy(update={"network": spec.network.model_copy(update={"blocks": 2})})
    with pytest.raises(
        UserError, match="another architecture: tensor '.*' is missing in the checkpoint"
    ):
        load_weights(deeper.build().network, file)


def test_sampling_mistakes(tmp_path):
    train_tiny(tmp_path / "run", images=64)
    run, out = tmp_path / "run", tmp_path / "x.png"
    for arguments, words in [
        (["--steps", "0"], "steps.0: Input should be greater than or equal to 1, got 0"),
        (["--steps", "2", "--label", "11"], "label 11 is out of range: this model knows 0 to 9"),
        (["--steps", "2", "--sampler", "dimm"], "unknown sampler 'dimm' (did you mean 'ddim'?)"),
        (["--steps", "2", "--grid", "lamb"], "unknown grid 'lamb' (did you mean 'lam'?)"),
    ]:
        assert words in refused(tmp_path, "sample", run, "--out", out, *arguments)
    assert "is not a run" in refused(
        tmp_path, "sample", tmp_path / "rum", "--steps", "1", "--out", out
    )


def test_student_mistakes(tmp_path):
    train_tiny(tmp_path / "teacher", images=64)
    values = tiny_config(
        tmp_path / "student",
        "progressive",
        method={"teacher": str(tmp_path / "teacher"), "start_steps": 12},
    )
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(values))
    assert "their ratio must be a power of 2" in refused(tmp_path, "train", file, "--cpu")
    assert "is not a run" in refused(
        tmp_path, "train", file, "method.start_steps=4", "method.teacher=none", "--cpu"
    )
    line = refused(tmp_path, "train", file, "method.start_steps=4", "model.path=vp-cosine", "--cpu")
    assert "a student copies its teacher's network" in line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_tiny(folder, images=64)
    return folder


HUGE = str(10**30)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--seed -1", "seed = -1: give 0 to 4294967295"),
        ("--seed 4294967296", "seed = 4294967296: give 0 to"),  # the numbers of seed 0
        (f"--seed {HUGE}", "give 0 to"),
        ("--label -1", "label -1 is out of range"),
        ("--label 11", "label 11 is out of range"),
        (f"--label {HUGE}", "is out of range"),
        ("--count 0", "--count 0: at least 1"),
        (f"--count {HUGE}", "at most 9,007,199,254,740,992"),
        ("--batch-size 0", "--batch-size 0: at least 1"),
        (f"--batch-size {HUGE}", "at most"),
        ("--option eta=0,1", "--option eta=0,1: give one number"),
        ("--option eta=0 --option eta=1", "--option eta is given twice"),
        ("--guidance-scale nan", "must be a finite number"),
        ("--sampler rk45 --option tolerance=0", "tolerance"),
        ("--sampler rk45 --option tolerance=-1", "tolerance"),
        ("--sampler consistency --grid at:2", "at:2"),
    ],
)
def test_samples_that_cannot_be(tmp_path, trained, options, says):
    command = ("sample", trained, "--out", tmp_path / "x.png", "--count", "2", *options.split())
    assert says in refused(tmp_path, *command)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--n 1", "--n 1: at least 2"),
        (f"--n {HUGE}", "at most"),
        ("--rounds 0", "--rounds 0: at least 1"),
        ("--batch-size -5", "--batch-size -5: at least 1"),
        ("--tolerance nan", "--tolerance nan: between 0 and 1"),
        ("--seed -1", "seed = -1"),
        ("--seed 4294967295", "seed = 4294967296"),  # the one that measures
        ("--extractor fashion-cnn", "fashion-cnn on digits"),
        ("--steps 1", "one step has no times to search for"),
        ("--steps 2,3", "several samplers, steps"),
    ],
)
def test_searches_for_times_that_cannot_be(tmp_path, trained, options, says):
    command = ("times", trained, "--steps", "2", "--extractor", "digits-cnn", "--n", "8")
    assert says in refused(tmp_path, *command, *options.split())


def test_lanes_are_as_many_as_a_machine_has(tmp_path, config):
    for lanes in ("0", "-1", HUGE):
        assert "--lanes" in refused(tmp_path, "recipe", "digits", "ppca", "--lanes", lanes)


def test_options_stand_anywhere_among_overrides(tmp_path, config):
    line = refused(tmp_path, "train", config, "--cpu", "optimizer.lr=fast")
    assert "optimizer.lr" in line


def test_pairs_go_into_no_folder_of_something_else(tmp_path, trained):
    file = tmp_path / "p.yaml"
    values = {"run": str(trained), "out": str(trained), "count": 2, "steps": 1}
    file.write_text(yaml.safe_dump(values))
    before = tree(trained)
    assert "'checkpoints' and no pairs.json" in refused(tmp_path, "pairs", file)
    assert tree(trained) == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("x")
    assert "'a.tex'" in refused(tmp_path, "pairs", file, f"out={tmp_path}/thesis")
