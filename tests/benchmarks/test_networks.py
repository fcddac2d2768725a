"""The benchmark of a study's networks: who is in the table, how large they are, what is refused."""

from __future__ import annotations

import json
import re
import sys

import torch

from benchmarks import networks
from core.networks.dit import DiTConfig
from core.networks.unet import UNetConfig
from tests.helpers.tiny import tiny_config

UNET = {"name": "unet", "widths": [8], "blocks": 1, "attention": [], "patch": 2}
DIT = {"name": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 4}


def run(tmp_path, monkeypatch, capsys, variants: dict) -> tuple[int, str, str]:
    values = tiny_config("run", own_network=UNET)
    values |= {"question": "Which?", "variants": variants, "seeds": [0]}
    values["sweep"] = {"samplers": ["ddim"], "steps": [1], "extractor": "digits-cnn", "n": 8}
    file = tmp_path / "study.yaml"
    study = {key: value for key, value in values.items() if key != "run"}
    file.write_text(json.dumps(study))  # which is YAML without aliases
    arguments = ["networks", str(file), "--batch", "4", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    threads, code = torch.get_num_threads(), 0
    try:
        networks.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        torch.set_num_threads(threads)
    return code, *capsys.readouterr()


def test_each_network_once_with_its_parameters(tmp_path, monkeypatch, capsys):
    longer = {"model.network": DIT, "budget.images": 50}
    cells = {"U-Net": {}, "transformer": {"model.network": DIT}, "transformer for longer": longer}
    code, out, errors = run(tmp_path, monkeypatch, capsys, cells)
    assert code == 0, errors
    lines = dict(re.findall(r"^(U-Net|transformer[\w ]*?) {2,}([\d,. ]+)$", out, re.MULTILINE))
    assert list(lines) == ["U-Net", "transformer"]
    unet = UNetConfig(**UNET | {"widths": (8,), "attention": ()})
    for name, config in (("U-Net", unet), ("transformer", DiTConfig(**DIT))):
        size = sum(p.numel() for p in config.build(1, 8, 10).parameters())
        assert lines[name].split()[0] == f"{size:,}"
    first = lines["U-Net"].split()
    assert first[2] == first[4] == "1.00"


def test_one_network_alone_is_refused(tmp_path, monkeypatch, capsys):
    cells = {"short": {"budget.images": 50}, "long": {"budget.images": 60}}
    code, _, errors = run(tmp_path, monkeypatch, capsys, cells)
    assert code == 2 and "nothing to compare" in errors
