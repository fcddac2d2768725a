"""Configs: files over base files over overrides, and one clear line for each mistake."""

from typing import Literal

import pytest
from pydantic import ValidationError

from core.config import Strict, config_sha256, dump_config, parse, read_config
from core.errors import UserError


class Net(Strict):
    widths: tuple[int, ...] = (64, 128)
    dropout: float = 0.0


class Optimizer(Strict):
    lr: float = 2e-4
    name: Literal["adamw", "sgd"] = "adamw"


class Config(Strict):
    run: str
    net: Net = Net()
    optimizer: Optimizer = Optimizer()
    note: str | None = None
    stages: tuple[Optimizer, ...] = ()


def _parse(values: dict) -> Config:
    return parse(Config, values, "test.yaml")


def _write(folder, name: str, text: str):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_files_over_base_files_over_overrides(tmp_path):
    _write(tmp_path, "base.yaml", "run: bottom\nnet: {widths: [1, 2], dropout: 0.5}\nnote: kept\n")
    _write(
        tmp_path, "shared/middle.yaml", "base: ../base.yaml\nrun: middle\noptimizer: {lr: 1e-3}\n"
    )
    top = _write(tmp_path, "top.yaml", "base: shared/middle.yaml\nnet:\n  dropout: 0.1\n")
    assert read_config(top) == {
        "run": "middle",
        "net": {"widths": [1, 2], "dropout": 0.1},
        "optimizer": {"lr": 1e-3},
        "note": "kept",
    }
    overrides = [
        "net.widths=[8,16,32]",
        "optimizer.lr=5e-5",
        "run=a=b",
        "note=null",
        "optimizer.name=sgd",
    ]
    config = _parse(read_config(top, overrides))
    assert config.net == Net(widths=(8, 16, 32), dropout=0.1)
    assert (
        config.optimizer == Optimizer(lr=5e-5, name="sgd")
        and config.run == "a=b"
        and config.note is None
    )


def test_the_order_of_overrides_loses_none(tmp_path):
    path = _write(tmp_path, "c.yaml", "run: x\noptimizer: {name: adamw, lr: 1.0}\n")
    for overrides in (
        ["optimizer.lr=2.0", "optimizer.name=sgd"],
        ["optimizer.name=sgd", "optimizer.lr=2.0"],
    ):
        assert read_config(path, overrides)["optimizer"] == {"name": "sgd", "lr": 2.0}
    assert read_config(path, ["run=y", "run=z"])["run"] == "z"


def test_another_name_replaces_its_section(tmp_path):
    """A section of another kind does not inherit options that only the first kind has."""
    _write(tmp_path, "base.yaml", "method: {name: a, only_a: 1}\n")
    assert read_config(_write(tmp_path, "b.yaml", "base: base.yaml\nmethod: {name: b}\n")) == {
        "method": {"name": "b"}
    }
    same = _write(tmp_path, "a.yaml", "base: base.yaml\nmethod: {name: a, more: 2}\n")
    assert read_config(same) == {"method": {"name": "a", "only_a": 1, "more": 2}}


@pytest.mark.parametrize(
    "text, value", [("1e-4", 1e-4), ("1E4", 1e4), ("-2e3", -2e3), ("3.5e+2", 350.0), ("2", 2.0)]
)
def test_numbers(tmp_path, text, value):
    """YAML 1.1 reads 1e-4 as a string."""
    path = _write(tmp_path, "c.yaml", f"run: x\noptimizer:\n  lr: {text}\n")
    lr = _parse(read_config(path)).optimizer.lr
    assert lr == value and isinstance(lr, float)
    assert _parse(read_config(path, [f"optimizer.lr={text}"])).optimizer.lr == value


def test_a_string_stays_a_string(tmp_path):
    assert read_config(_write(tmp_path, "c.yaml", "run: e5\nnote: '1e-4'\n")) == {
        "run": "e5",
        "note": "1e-4",
    }


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"run": "x", "optimiser": {}},
            r"test.yaml: unknown key 'optimiser' \(did you mean 'optimizer'\?\)",
        ),
        (
            {"run": "x", "optimizer": {"lrr": 1.0}},
            r"unknown key 'optimizer.lrr' \(did you mean 'lr'\?\)",
        ),
        (
            {"run": "x", "net": {"drop_out": 1.0}},
            r"unknown key 'net.drop_out' \(did you mean 'dropout'\?\)",
        ),
        (
            {"run": "x", "stages": [{}, {"nme": "sgd"}]},
            r"unknown key 'stages.1.nme' \(did you mean 'name'\?\)",
        ),
        ({"run": "x", "net": {"qqq": 1}}, r"unknown key 'net.qqq' \(known: dropout, widths\)"),
        ({}, "key 'run' is missing"),
        ({"run": 3}, "run: .*string.*got 3"),
        ({"run": "x", "optimizer": {"lr": "fast"}}, "optimizer.lr: .*number.*got 'fast'"),
        ({"run": "x", "optimizer": {"lr": True}}, "optimizer.lr"),
        ({"run": "x", "optimizer": {"lr": "0.1"}}, "optimizer.lr"),
        ({"run": "x", "net": {"widths": [64, 1.5]}}, "net.widths.1: .*integer.*got 1.5"),
        (
            {"run": "x", "optimizer": {"name": "adam"}},
            "optimizer.name: .*'adamw' or 'sgd'.*got 'adam'",
        ),
        ({"run": "x", "net": [1]}, "net: "),
    ],
)
def test_mistakes_name_the_key(values, message):
    with pytest.raises(UserError, match=message) as caught:
        _parse(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("run: x\nrun: y\n", "'run' is given twice"),
        ("net:\n  dropout: 1\n  dropout: 2\n", "'dropout' is given twice"),
        ("run: [1, 2\n", "c.yaml is not valid YAML"),
        ("- 1\n- 2\n", "mapping of keys to values, not a list"),
        ("base: nowhere.yaml\n", "nowhere.yaml does not exist"),
        (
            "base: [a.yaml]\n",
            r"c.yaml: base: must be the path of one other config, got \['a.yaml'\]",
        ),
        ("base: 3\n", "c.yaml: base: must be the path of one other config, got 3"),
        ("base: false\n", "c.yaml: base: must be the path"),
        ('base: "a\\0b"\n', "base: 'a.*is no text that a file could hold"),
        (f"base: {'x' * 5000}\n", "does not exist"),
        ("run: &a [*a]\n", r"c.yaml, line 1: aliases such as \*a are not read"),
        ("run: &a x\nnote: *a\n", "c.yaml, line 2: aliases"),
        ("net: &n {dropout: 0.5}\nother: {<<: *n}\n", "c.yaml, line 2: aliases"),
        ("1: x\n", "c.yaml, line 1: key 1 is no text: put it in quotes"),
        ("run: x\nyes: x\n", "line 2: key yes is no text"),
        ("? [a]\n: x\n", "key of a sequence is no text"),
        ("run: x\n\tnote: y\n", "is not valid YAML.*line 2"),
        ("net: {dropout: .inf}\n", "c.yaml: net.dropout: must be a finite number, got inf"),
        ("net: {dropout: .nan}\n", "c.yaml: net.dropout: must be a finite number, got nan"),
        ("net: {dropout: 1e999}\n", "c.yaml: net.dropout: must be a finite number"),
        ("net: {widths: [1, 9223372036854775808]}\n", "net.widths.1: the number is too large"),
        (f"run: {'9' * 5000}\n", "c.yaml holds a value that cannot be read: Exceeds the limit"),
        ("run: !!int x\n", "c.yaml holds a value that cannot be read"),
        ("run: 0x_\n", "c.yaml holds a value that cannot be read"),
        ("run: !!python/name:os.system x\n", "line 1: tag:yaml.org,2002:python/name:os.system is"),
        ("run: !!python/object/apply:os.system [ls]\n", "line 1: .*os.system is not read"),
        ("run: !!binary aGVsbG8=\n", "binary is not read"),
        ("run: !!set {a, b}\n", "set is not read"),
        ("run: !!timestamp 2026-01-01\n", "timestamp is not read"),
        ('run: "\\ud800"\n', "run: .*is no text that a file could hold"),
        ("run: " + "[" * 3000 + "\n", "nested too deeply"),
        ("run: " + "{a: " * 60 + "1" + "}" * 60 + "\n", "nested too deeply"),
        ("run: a\0b\n", "is not valid YAML"),
        ("--- {}\n--- {}\n", "is not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_config(_write(tmp_path, "c.yaml", text))
    assert "\n" not in str(caught.value)


def test_files_that_are_not_utf8(tmp_path):
    for content in (b"run: \xff\n", "run: x\n".encode("utf-16"), b"\x80\x02}q\x00."):
        (tmp_path / "c.yaml").write_bytes(content)
        with pytest.raises(UserError, match="c.yaml is not text in UTF-8") as caught:
            read_config(tmp_path / "c.yaml")
        assert "\n" not in str(caught.value)


def test_aliases_do_not_explode(tmp_path):
    """0.6 kB that would be 10^20 items."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    with pytest.raises(UserError, match="line 2: aliases"):
        read_config(_write(tmp_path, "c.yaml", "\n".join(lines)))


def test_many_keys_take_no_quadratic_time(tmp_path):
    text = "".join(f"k{i}: 0\n" for i in range(20_000))
    assert len(read_config(_write(tmp_path, "c.yaml", text))) == 20_000


def test_dates_are_texts(tmp_path):
    path = _write(tmp_path, "c.yaml", "run: 2026-01-01\nnote: 2001-12-14t21:59:43.10-05:00\n")
    config = _parse(read_config(path, ["optimizer.lr=1.0"]))
    assert (config.run, config.note) == ("2026-01-01", "2001-12-14t21:59:43.10-05:00")
    assert _parse(read_config(path, ["run=2026-12-31"])).run == "2026-12-31"


def test_a_chain_of_base_files_ends(tmp_path):
    for i in range(100):
        _write(tmp_path, f"{i}.yaml", f"base: {i + 1}.yaml\n")
    with pytest.raises(UserError, match="50 files are based on one another"):
        read_config(tmp_path / "0.yaml")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"run": "x", "optimizer": {"lr": float("nan")}}, "optimizer.lr: must be a finite number"),
        ({"run": "x", "net": {"widths": (1, 10**30)}}, "net.widths.1: the number is too large"),
        ({"run": object()}, "run: object is not read"),
        ({"run": {1: 2}}, "run: key 1 is no text"),
        ({"run": b"x"}, "run: bytes is not read"),
        ({"run": "\udc80"}, "run: .*no text that a file could hold"),
    ],
)
def test_values_that_no_file_can_say(values, words):
    with pytest.raises(UserError, match=f"test.yaml: {words}"):
        _parse(values)


def test_missing_file_names_the_nearest(tmp_path):
    _write(tmp_path, "teacher.yaml", "run: x\n")
    with pytest.raises(UserError, match="did you mean 'teacher.yaml'"):
        read_config(tmp_path / "techer.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lr", "is not of the form key=value"),
        ("=3", "is not of the form key=value"),
        ("a..b=3", "is not of the form key=value"),
        (".a=3", "is not of the form key=value"),
        ("optimizer.lr=[1", "override 'optimizer.lr=.1' is not valid YAML"),
        ("n=[1", "override 'n=.1' is not valid YAML"),
        ("run.x=1", "override 'run.x=1': run is 'x', which has no keys"),
        ("stages.0=1", "override 'stages.0=1': stages is a list, which has no keys"),
        ("optimizer.lr.x.y=1", "optimizer.lr is 1.0, which has no keys"),
        ("run={1: 2}", "override 'run={1: 2}', line 1: key 1 is no text"),
        ("run=*a", "line 1: aliases"),
        ("optimizer.lr=.nan", "optimizer.lr: must be a finite number|config: must be a finite"),
        ("a." * 500 + "a=1", "nested too deeply"),
        (f"run={'9' * 5000}", "holds a value that cannot be read"),
        ("run=\udcff", "is not valid YAML"),
    ],
)
def test_bad_overrides(tmp_path, override, words):
    path = _write(tmp_path, "c.yaml", "run: x\nstages: []\noptimizer: {lr: 1.0}\n")
    with pytest.raises(UserError, match=words) as caught:
        read_config(path, [override])
    assert "override" in str(caught.value) and "\n" not in str(caught.value)
    str(caught.value).encode()  # can be printed


def test_overrides_that_contradict_each_other(tmp_path):
    path = _write(tmp_path, "c.yaml", "run: x\n")
    with pytest.raises(UserError, match="net is 1, which has no keys"):
        read_config(path, ["net=1", "net.dropout=0.5"])


def test_base_files_in_a_circle(tmp_path):
    _write(tmp_path, "a.yaml", "base: b.yaml\n")
    with pytest.raises(UserError, match="lead back to itself"):
        read_config(_write(tmp_path, "b.yaml", "base: a.yaml\n"))


def test_frozen():
    config = _parse({"run": "x"})
    with pytest.raises(ValidationError):
        config.run = "y"


def test_the_resolved_config_is_the_config(tmp_path):
    config = _parse(
        {"run": "x", "net": {"widths": [3]}, "optimizer": {"lr": 1e-5}, "stages": [{"name": "sgd"}]}
    )
    again = _parse(read_config(_write(tmp_path, "resolved.yaml", dump_config(config))))
    assert again == config and config_sha256(again) == config_sha256(config)


def test_hash():
    """Of the values, however they were written; a known value, so that it stays what published
    results carry."""
    a = _parse({"run": "x", "optimizer": {"lr": 1e-3}})
    assert config_sha256(a) == config_sha256(
        _parse({"optimizer": {"lr": 0.001, "name": "adamw"}, "run": "x", "note": None})
    )
    assert config_sha256(a) != config_sha256(_parse({"run": "x", "optimizer": {"lr": 2e-3}}))
    assert config_sha256(a) == "019f54f275f9aa5e6385f20f5cca04867c655055ebfe299eec042f33005ff11e"
