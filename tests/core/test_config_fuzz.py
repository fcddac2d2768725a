"""Configs under random input: each either gives a config or is refused in one line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Discriminator, Tag

from core.config import Strict, apply_overrides, dump_config, parse, read_config
from core.data import DataConfig
from core.errors import UserError
from core.networks.unet import UNetConfig
from tests.helpers import inputs


class Inner(Strict):
    lr: float = 1e-3
    widths: tuple[int, ...] = (1,)
    kind: Literal["a", "b"] = "a"


class First(Strict):
    name: Literal["first"] = "first"
    inner: Inner = Inner()


class Second(Strict):
    name: Literal["second"] = "second"
    share: float | None = None


def _tag(value: object) -> str | None:
    return value.get("name") if isinstance(value, dict) else getattr(value, "name", None)


class Outer(Strict):
    run: str
    flag: bool = False
    count: int = 1
    part: Annotated[
        Annotated[First, Tag("first")] | Annotated[Second, Tag("second")],
        Discriminator(_tag),
    ] = First()
    parts: tuple[Inner, ...] = ()
    both: str | tuple[str, ...] = "x"


CLASSES = (Outer, Inner, DataConfig, UNetConfig)

KEYS = sorted({key for cls in (*CLASSES, First, Second) for key in cls.model_fields}) + ["base"]
texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["first", "second", "a", "b", "", "2026-01-01", ".inf", "1e4", "~", "\ud800"]),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts,
    st.integers(min_value=-(10**40), max_value=10**40), st.dates(), st.binary(max_size=4),
)  # fmt: skip
keys = st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), texts, scalars)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner),
        st.dictionaries(keys, inner, max_size=4),
        st.sets(scalars, max_size=3),
    ),
    max_leaves=12,
)
TOKENS = [*KEYS, *"0123456789-+._:#&*!|>%@`'\"[]{},? \t\n\r\0~=<", ": ", "\n  ", "- ", "? ", "&a ", "*a",
          "!!int ", "!!float ", "!!set ", "!!python/object:x ", "<<: ", ".nan", "0x_", "---\n", "...", "\ufeff",
          "\x85", "\u2028", "é", "\ud800", "first", "null", "true", "1e5", "1:30:30", "'x'", "run: x\n"]  # fmt: skip
yaml_texts = st.one_of(
    st.lists(st.sampled_from(TOKENS), max_size=30).map("".join),
    st.text(max_size=40),
    values.map(lambda value: yaml.dump(value)),
    values.map(lambda value: yaml.dump(value, default_flow_style=True, allow_unicode=True)),
)
classes = st.sampled_from(CLASSES)
pytestmark = pytest.mark.timeout(3600)  # the long profile takes its time


def _config_or_one_line(make) -> Strict | dict | None:
    try:
        made = make()
    except UserError as error:
        line = str(error)
        assert line and len(line.splitlines()) == 1 and line.isprintable()
        inputs.note(worked=False)
        return None
    inputs.note(worked=True)
    return made


@given(classes, st.one_of(values, st.dictionaries(st.sampled_from(KEYS), values)))
def test_values(cls, given_values):
    config = _config_or_one_line(lambda: parse(cls, given_values, "test"))
    if config is not None:  # and what was read can be written and read again
        assert parse(cls, yaml.safe_load(dump_config(config)), "test") == config


@given(classes, yaml_texts, st.lists(yaml_texts, max_size=2), st.booleans())
def test_files(cls, text, overrides, keyed):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        if keyed:
            overrides = [f"{KEYS[len(o) % len(KEYS)]}={o}" for o in overrides]
        _config_or_one_line(lambda: parse(cls, read_config(file, overrides), str(file)))


@given(classes, st.binary(max_size=60))
def test_bytes(cls, content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        file.write_bytes(content)
        _config_or_one_line(lambda: parse(cls, read_config(file), str(file)))


@given(
    st.lists(st.tuples(st.lists(keys.map(str), max_size=4).map(".".join), yaml_texts), max_size=3)
)
def test_overrides(pairs):
    overrides = [f"{key}={text}" for key, text in pairs]
    base = {"run": "x", "part": {"name": "first", "inner": {"lr": 1.0}}, "parts": [{"lr": 1.0}]}
    _config_or_one_line(lambda: parse(Outer, apply_overrides(base, overrides), "test"))


@pytest.mark.parametrize("cls", CLASSES)
def test_each_class_can_be_met(cls):
    """Else the fuzz would only see refusals."""
    known = {"Outer": {"run": "x"}, "DataConfig": {"name": "digits"}}
    assert parse(cls, known.get(cls.__name__, {}), "test")
