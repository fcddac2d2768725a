"""Rows: what was published stays readable and is written as it was; anything else is one line that
names file, line and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lab
from core.errors import UserError
from core.setting import Setting
from eval.curves.table import markdown_tables
from eval.curves_file import append_row, read_measured, read_rows
from eval.rows import Row, Unmeasured, parse_row
from tests.helpers import inputs
from tests.helpers.rows import changed, row

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted((ROOT / "results").rglob("curves.jsonl"))
LINES = [line for file in PUBLISHED for line in file.read_bytes().splitlines()]
RENAMED = {"jump": "consistency", "sde": "euler-maruyama"}
NEW = (
    "options", "sets", "resamples", "train_seed", "ema_half_life", "critic_features", "codec",
    "guidance_interval",
)  # fmt: skip
SAMPLED = next(json.loads(line) for line in LINES if json.loads(line)["sampler"])


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.parent.name)
def test_published_rows_are_written_as_they_were(file, tmp_path):
    """Same keys in the same order, same digits; the names of two samplers and the keys at the end
    are new."""
    out = tmp_path / "curves.jsonl"
    for one in read_rows(file):
        append_row(out, one)
    before, after = file.read_text().splitlines(), out.read_text().splitlines()
    for old, new in zip(before, after, strict=True):
        expected = json.loads(old, parse_float=str, parse_int=str)
        written = json.loads(new, parse_float=str, parse_int=str)
        expected["sampler"] = RENAMED.get(expected["sampler"], expected["sampler"])
        assert list(written) == [*expected, *(key for key in NEW if key not in expected)]
        assert {key: written[key] for key in expected} == expected
    assert read_rows(out) == read_rows(file)


def test_words_of_old_rows_become_numbers():
    found = {(r.fid_error, r.sets, r.resamples) for file in PUBLISHED for r in read_rows(file)}
    assert ("3 sets", 3, 0) in found and ("stratified bootstrap 100", 1, 100) in found
    words = {None: (1, 0), "bootstrap 7": (1, 7), "by a stopwatch": (1, 0)}
    for text, numbers in words.items():
        one = row("ddpm", 1, 2.0, fid_error=text)
        assert (one.sets, one.resamples) == numbers
    assert row("ddpm", 1, 2.0, fid_error="3 sets", sets=5).sets == 5  # numbers count, not words


def test_the_configured_half_life_of_old_rows_is_marked():
    """Also that of a run from before the true one was kept; a new row says the true one."""
    old = [r for file in PUBLISHED for r in read_rows(file) if (r.ema or "").startswith("half")]
    assert old and all(r.weights == f"{r.ema} (cap)" and r.ema_half_life is None for r in old)
    shipped = lab.load(ROOT / "teachers" / "shipped" / "digits")
    assert (shipped.ema, shipped.ema_half_life) == ("half-life 10000 images", None)
    assert shipped.weights == "half-life 10000 images (cap)"
    new = row("ddpm", 4, 2.0, ema="average", ema_half_life=9460.4)
    assert new.weights == "half-life 9460 images"
    assert row("ddpm", 4, 2.0, ema="raw").weights == "raw"
    assert row("floor", None, 2.0).weights is None


def test_a_row_holds_its_setting():
    given = {"sampler": "ddim", "grid": "karras", "guidance_scale": 2.0, "threshold": "static"}
    given |= {"guidance_interval": (0.2, 0.8)}
    one = row("ddpm", 4, 2.0, **given, options={"eta": 0.5})
    assert one.setting == Setting(**given, steps=4, options={"eta": 0.5})
    assert row("floor", None, 2.0).setting is None
    # what a sampler does anyway makes no other setting
    usual = changed(row("ddpm", 4, 2.0), grid="time", options={"eta": 0.0})
    assert usual.setting == Setting(sampler="ddim", steps=4) and usual.key == row("ddpm", 4, 2).key


@pytest.mark.parametrize(
    "change, key, samples, series",
    [
        ({"options": {"eta": 0.5}}, True, True, True),
        ({"grid": "karras"}, True, True, True),
        ({"seed": 1}, True, True, True),
        ({"steps": 2}, True, True, False),
        ({"weights_sha256": "other"}, True, True, False),
        ({"n": 100}, True, False, False),
        ({"fid_error": "3 sets"}, True, False, False),
        ({"extractor_sha256": "other"}, True, False, False),
        ({"config_sha256": "other"}, False, False, True),
        ({"ema": "another"}, False, False, True),
        ({"device": "another"}, False, False, False),
        ({"fid": 3.0}, False, False, False),
        ({"commit": "another", "seconds_per_image": 1.0}, False, False, False),
    ],
)
def test_what_makes_rows_the_same(change, key, samples, series):
    """The same measurement, of the same samples, on the same curve."""
    one = row("ddpm", 1, 2.0)
    other = changed(one, **change)
    assert (one.key != other.key) == key
    assert (one.samples_key != other.samples_key) == samples
    assert (one.series != other.series) == series


MISSING = object()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"dataset": MISSING}, "key 'dataset' is missing"),
        ({"weights_sha256": MISSING}, "key 'weights_sha256' is missing"),
        ({"nfe": MISSING}, "key 'nfe' is missing or null"),
        ({"ema": None}, "key 'ema' is missing or null"),
        ({"seed": None}, "key 'seed' is missing or null"),
        ({"extractor_sha256": None}, "key 'extractor_sha256' is null"),
        ({"n": "many"}, "key 'n' is \"many\""),
        ({"n": 0}, "key 'n' is 0"),
        ({"n": True}, "key 'n' is true"),
        ({"n": 10**40}, "key 'n' is 1000"),
        ({"steps": 1.5}, "key 'steps' is 1.5"),
        ({"nfe": 0}, "key 'nfe' is 0"),
        ({"nfe": -1}, "key 'nfe' is -1"),
        ({"fid": "low"}, "key 'fid' is \"low\""),
        ({"fid": [1]}, "key 'fid' is [1]"),
        ({"fid": 1e300}, "key 'fid' is 1e+300"),
        ({"fid_std": float("nan")}, "key 'fid_std' is NaN"),
        ({"fid_std": -1.0}, "key 'fid_std' is -1.0"),
        ({"kid": float("inf")}, "key 'kid' is Infinity"),
        ({"recall": 1e300}, "key 'recall' is 1e+300"),
        ({"class_histogram": [0, 0]}, "key 'class_histogram' counts no image"),
        ({"class_histogram": [1, -1]}, "key 'class_histogram.1' is -1"),
        ({"threshold": "harsh"}, "key 'threshold' is \"harsh\""),
        ({"options": {"eta": "big"}}, "key 'options.eta' is \"big\""),
        ({"method": {"a": ["b\n"] * 99}}, 'key \'method\' is {"a": ["b\\n", "b\\n"'),
    ],
)
def test_a_wrong_row_is_refused_by_file_line_and_key(tmp_path, change, says):
    file, values = tmp_path / "curves.jsonl", SAMPLED | change
    values = {key: value for key, value in values.items() if value is not MISSING}
    file.write_text(json.dumps(SAMPLED) + "\n\n" + json.dumps(values) + "\n")
    with pytest.raises(UserError) as refusal:
        read_rows(file)
    said = str(refusal.value)
    assert said.startswith(f"{file}, line 3: ") and says in said
    assert "\n" not in said and len(said) < len(str(file)) + 300


@pytest.mark.parametrize(
    "line", [b"17", b"null", b"[]", b'{"dataset": "dig', b"\xff\xfe", b'"\\ud800"', b"[" * 9999]
)
def test_a_line_that_is_no_row(tmp_path, line):
    file = tmp_path / "curves.jsonl"
    file.write_bytes(LINES[0] + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=r"curves.jsonl, line 2: not (valid JSON|a JSON object)"):
        read_rows(file)


def test_a_last_line_without_its_end_is_left_out(tmp_path):
    """Cut off by a kill, it is no JSON any more; a whole one that is wrong is no accident."""
    file = tmp_path / "curves.jsonl"
    file.write_bytes(LINES[0] + b"\n" + LINES[1][:-1])
    assert len(read_rows(file)) == 1
    file.write_bytes(LINES[0] + b"\n" + LINES[1])
    assert len(read_rows(file)) == 2
    file.write_bytes(LINES[0] + b"\n" + b'{"dataset": "digits"}')
    with pytest.raises(UserError, match="line 2: key 'method' is missing"):
        read_rows(file)


def test_rows_without_a_distance_are_counted_and_left_out(tmp_path, capsys):
    file = tmp_path / "curves.jsonl"
    fids = [1.0, None, float("nan"), 2.0, float("inf"), *[None] * 4, 3.0]
    file.write_text("".join(json.dumps(SAMPLED | {"fid": fid}) + "\n" for fid in fids))
    assert [one.fid for one in read_rows(file)] == [1.0, 2.0, 3.0]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ": 7 (line 2, 3, 5, 6, 7, ...)" in said
    file.write_text(json.dumps({k: v for k, v in SAMPLED.items() if k != "fid"}) + "\n")
    with pytest.raises(UserError, match="line 1: key 'fid' is missing"):
        read_rows(file)


def test_an_unmeasured_row_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_row(tmp_path / "curves.jsonl", row("ddpm", 1, float("nan"), fid_std=None))
    assert not (tmp_path / "curves.jsonl").exists()


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="does not exist: python -m scripts.evaluate writes it"):
        read_measured(tmp_path / "curves.jsonl")
    with pytest.raises(UserError, match="is a folder: give a file"):
        read_rows(tmp_path)
    append_row(tmp_path / "curves.jsonl", row("floor", None, 1.0))
    with pytest.raises(UserError, match="holds no measured points"):
        read_measured(tmp_path / "curves.jsonl")


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.floats(), max_size=2),
)


@st.composite
def mutated(draw) -> bytes:
    """A published row with some values replaced, removed or added, or with a byte changed."""
    line = draw(st.sampled_from(LINES))
    values = json.loads(line)
    for key in draw(st.lists(st.sampled_from(sorted(values)), max_size=3, unique=True)):
        if draw(st.booleans()):
            values[key] = draw(ODD)
        else:
            del values[key]
    line = bytearray(json.dumps(values).encode())
    if draw(st.booleans()):
        line[draw(st.integers(0, len(line) - 1))] = draw(st.integers(0, 255))
    return bytes(line)


@settings(suppress_health_check=list(HealthCheck))
@given(mutated(), mutated())
def test_mutated_rows_become_rows_or_one_line(first, second):
    """Whatever is read can be written, read again and put into a table."""
    rows: list[Row] = []
    for line in (first, second):
        try:
            rows.append(parse_row(line, "FILE, line 1"))
            inputs.note(worked=True)
        except Unmeasured:
            inputs.note(worked=False)
        except UserError as error:
            inputs.note(worked=False)
            assert str(error).startswith("FILE, line 1: ") and "\n" not in str(error)
    for one in rows:
        assert parse_row(one.json_line().encode(), "again") == one
    table = markdown_tables(rows)
    assert all(text.isprintable() for text in table.splitlines())
