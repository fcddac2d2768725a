"""The README's Python runs, and its method is one."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

import core.training.method
from tests.helpers.command_lines import ROOT
from tests.helpers.fit import fit
from tests.helpers.gaussian import MEAN, SHAPE, STD, AffineInX
from tests.helpers.models import model_of

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_it_is_a_door():
    lines = TEXT.splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 100 and not line.startswith("| ")]


def test_python_on_the_first_screen(tmp_path, monkeypatch, capsys):
    code = BLOCKS[0].replace("n=1000", "n=100").replace('"samples.png"', f'"{tmp_path}/x.png"')
    assert code.count("n=100") == 1
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    said = re.fullmatch(
        r"FD ([\d.]+) ± [\d.]+ at 8 evaluations per image\n", capsys.readouterr().out
    )
    assert 2 < float(said[1]) < 12  # n = 100 measures higher than n = 1000
    assert Image.open(tmp_path / "x.png").size == (8 * (8 * 8 + 7), 8 * (8 * 8 + 7))


def test_the_method_learns_the_velocity_between_gaussians():
    from core.data import ImageSource
    from core.diffusion.parameterisations import from_denoised
    from core.training.method import MethodConfig
    from core.training.roles import Role

    names = vars(core.training.method) | {
        "FlowMatchingConfig": MethodConfig,
        "from_denoised": from_denoised,
        "ImageSource": ImageSource,
        "Role": Role,
    }
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    config = MethodConfig(name="flow-matching")
    method = names["FlowMatching"](config, model_of(AffineInX(), "rectified", "u", side=2), None)
    fit(method, 1500)
    x, t = torch.randn(200, *SHAPE), torch.tensor(0.5, dtype=torch.float64)
    known = -MEAN + 0.5 * (1 - STD**2) / (0.25 * STD**2 + 0.25) * (x - 0.5 * MEAN)
    with torch.no_grad():
        error = float((method.student.u(x, t) - known).square().mean().sqrt())
    assert error < 0.1 * float(known.std())


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", TEXT))
def test_links_lead_somewhere(link):
    assert link.startswith("http") or (ROOT / link).exists(), link
