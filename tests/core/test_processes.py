"""Which device is taken, in which arithmetic, and what a launcher's own settings change."""

from __future__ import annotations

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState

import core.processes
from core.errors import UserError
from core.precision import allow_tf32, exact_float32, tf32_allowed
from core.processes import check_device, has_float64, start_processes
from eval.features.extractors import make_extractor
from eval.sweep.machine import device_words
from tests.helpers.command_lines import run_script
from tests.helpers.runs import assert_same_bits
from tests.helpers.tiny import tiny_config


@pytest.fixture
def as_before():
    """Leaves the process's arithmetic, and accelerate's state, as they were."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


@pytest.fixture
def apple(monkeypatch):
    """A machine whose accelerator has no float64, as Apple's."""
    mps, zeros = torch.device("mps"), torch.zeros

    def no_float64(*sizes, dtype=None, device=None, **more):
        if torch.device(device or "cpu") == mps and dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return zeros(*sizes, dtype=dtype, **more)

    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: mps)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "zeros", no_float64)
    return mps


def test_without_float64_the_processor_is_taken_and_a_line_says_so(apple, as_before, capsys):
    assert has_float64(torch.device("cpu"))
    assert not has_float64(apple)
    assert start_processes().device.type == "cpu"
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("device 'mps' has no float64") and "processor" in line
    with pytest.raises(UserError, match="no float64, which times and noise need: take cpu"):
        check_device("mps")


def test_who_asks_for_the_processor_hears_nothing_of_others(apple, as_before, capsys):
    assert start_processes(cpu=True).device.type == "cpu"
    assert capsys.readouterr().err == ""


def test_float32_is_exact_unless_it_is_asked_for_otherwise(as_before, monkeypatch):
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
    start_processes(cpu=True)
    assert not tf32_allowed()
    start_processes(cpu=True, tf32=True)
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert device_words(torch.device("cuda")) == "NVIDIA H100, TF32"
    assert "TF32" not in device_words(torch.device("cpu"))
    with pytest.raises(RuntimeError), exact_float32():
        assert not tf32_allowed()
        raise RuntimeError
    assert tf32_allowed()
    allow_tf32(False)
    assert device_words(torch.device("cuda")) == "NVIDIA H100"


def test_extractors_never_multiply_in_tf32(as_before, monkeypatch):
    extractor, seen = make_extractor("digits-cnn"), []
    kept = extractor.classifier.features

    def watched(images):
        seen.append(tf32_allowed())
        return kept(images)

    monkeypatch.setattr(extractor.classifier, "features", watched)
    allow_tf32(True)
    extractor(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert seen == [False] and tf32_allowed()


@pytest.mark.parametrize("asked", ["bf16", "fp16"])
def test_a_launchers_precision_changes_no_bit(tmp_path, as_before, monkeypatch, asked):
    """What accelerate's own config asks for is left aside: model.autocast alone says it."""

    def trained(name: str):
        AcceleratorState._reset_state(reset_partial_state=True)
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tiny_config(tmp_path / name, images=128)))
        code, errors = run_script("train", file, "--cpu")
        assert code == 0, errors
        return tmp_path / name

    plain = trained("plain")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert_same_bits(plain, trained("asked"))
    assert AcceleratorState().mixed_precision == "no"


def test_overrides_may_follow_an_option(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tiny_config(tmp_path / "run", images=640)))
    code, errors = run_script("train", file, "--cpu", "budget.images=64", f"run={tmp_path}/other")
    assert code == 0, errors
    assert [p.name for p in (tmp_path / "other" / "checkpoints").iterdir()] == ["000000000064-01"]


def test_what_the_main_process_has_goes_to_all(monkeypatch):
    state = PartialState()
    assert core.processes.from_main({"a": 1}, state) == {"a": 1}
