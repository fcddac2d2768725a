"""The benchmark on networks of a few thousand parameters: the table is whole, the two networks are
the same, bad input is refused."""

import re
import sys
import time

import pytest
import torch

from benchmarks import speed
from benchmarks.speed import DiffusersUNet, median_ratio, paired
from core.networks.unet import UNet

pytest.importorskip("diffusers")


def _run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["speed", *arguments])
    try:
        speed.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        torch.set_num_threads(threads)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_table(monkeypatch, capsys, dtype):
    size = "--side 4 --channels 1 --widths 8 8 --blocks 1 --head-width 8 --batch 2 --repeats 1 --steps 3 --device cpu --threads 1"
    code, out, _ = _run(monkeypatch, capsys, *size.split(), "--dtype", dtype)
    assert code == 0 and dtype in out
    ours, theirs = re.search(r"parameters: ours ([\d,]+), diffusers ([\d,]+)", out).groups()
    assert ours == theirs
    for name in ("training", "forward"):
        fast, slow, ratio = map(
            float, re.search(rf"^{name} +([\d.]+) +([\d.]+) +([\d.]+)$", out, re.MULTILINE).groups()
        )
        assert ratio == pytest.approx(fast / slow, rel=0.01, abs=0.01)
    for name in ("ddim", "ddpm", r"dpm\+\+2m", "unipc"):
        speed, bare, overhead = map(
            float,
            re.search(rf"^{name} +([\d.]+) +([\d.]+) +(-?[\d.]+) %$", out, re.MULTILINE).groups(),
        )
        assert overhead == pytest.approx(100 * (bare / speed - 1), rel=0.02, abs=0.5)


@pytest.mark.parametrize(
    "widths, attention", [((64, 128), (1,)), ((32, 64), ()), ((32, 32, 64), (1, 2))]
)
def test_both_networks_are_of_one_shape(widths, attention):
    shape = (3, 8, widths, 1, attention, 32)
    ours, theirs = UNet(*shape, num_classes=speed.CLASSES), DiffusersUNet(*shape)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    x, t, label = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.9]), torch.tensor([1, 10])
    assert ours(x, t, None, label).shape == theirs(x, t, None, label).shape


def test_pairs_alternate():
    order = []
    actions = {
        "a": lambda: (order.append("a"), time.sleep(0.02)),
        "b": lambda: (order.append("b"), time.sleep(0.01)),
    }
    seconds = paired(actions, 5, torch.device("cpu"))
    assert "".join(order) == "ba" + "abbaabbaab" and [len(s) for s in seconds.values()] == [5, 5]
    assert median_ratio(seconds["a"], seconds["b"]) > 1.2


def test_bad_input(monkeypatch, capsys):
    for arguments, message in (
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--side", "7"], "side 7"),
        (["--device", "abacus"], "device 'abacus'"),
        (["--clock", "cpu", "--threads", "2"], "--clock cpu"),
    ):
        code, _, err = _run(monkeypatch, capsys, *arguments)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_without_diffusers(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    code, _, err = _run(monkeypatch, capsys, "--device", "cpu")
    assert code == 2 and "pip install -r requirements-test.txt" in err
