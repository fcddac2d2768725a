"""The bench of points: every method of the registry through its shrunken config, trained, measured,
drawn and published by the repository's own commands (slow: minutes where cores are shared); and
what its pictures say."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import lab
from core.data import load_data
from core.data.densities import eight_gaussians
from core.diffusion.paths import make_path
from core.pictures import PLANE, scatter
from core.sampling.sample import sample_images
from core.setting import Setting
from eval.curves_file import read_measured
from eval.report.paths import crossing, detour, ways
from scripts.publish import publish
from teachers.exact import mixture_model
from tests.helpers.command_lines import run_script
from tests.helpers.shrunken import configs_of_methods, small_planner


def _bench(folder: Path):
    return small_planner(
        folder, dataset="toy", device="cpu", cache=str(folder / "cache"), width=16, samples=20
    )


def _made(planner, goals: list[str]) -> None:
    """Makes them, and before them what they need, by the command lines."""
    for step in planner.plan(goals):
        config = planner.configs[step.job.name]
        script = {"run": "train", "pairs": "pairs", "sweep": "evaluate"}[config.kind]
        code, errors = run_script(script, str(config.file))
        assert code == 0, errors


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """A folder with configs and runs of the whole bench, shrunken."""
    folder = tmp_path_factory.mktemp("toy")
    planner = _bench(folder)
    _made(planner, [*planner.everything(), *planner.sweeps()])
    return folder


def test_points_go_through_the_sweep_and_are_drawn(tmp_path):
    """One method, so that the default tests see it too."""
    planner = _bench(tmp_path)
    _made(planner, ["flow"])
    entry = "entries=[{run: flow, samplers: [euler], steps: [2]}]"
    code, errors = run_script("evaluate", str(planner.configs["curve"].file), entry)
    assert code == 0, errors
    rows = read_measured(tmp_path / "runs" / "curves.jsonl")
    (strip,) = {row.samples for row in rows if not row.is_floor}
    assert {row.metric for row in rows} == {"SW2", "KL"}
    with Image.open(tmp_path / "runs" / strip) as picture:
        assert picture.size == (160, 160)


def test_every_method_is_on_the_bench(tmp_path):
    """But the autoencoder, which makes small latents of images: points are small already."""
    known = lab.METHODS.keys() - {"autoencoder"}
    assert configs_of_methods(_bench(tmp_path)).keys() == known


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_method_is_measured_by_both_distances(bench):
    rows = read_measured(bench / "runs" / "curves.jsonl")
    guided = read_measured(bench / "runs" / "curves-guided.jsonl")
    assert {row.run for row in guided if not row.is_floor} == {"teacher-guided", "guided"}
    assert all(math.isfinite(row.fid) for row in guided)
    runs = {p.parent.name for p in (bench / "runs").glob("*/config.yaml")}
    for metric in ("SW2", "KL"):
        of_metric = [row for row in rows if row.metric == metric]
        measured = {row.run for row in of_metric if not row.is_floor}
        assert measured == runs - {"teacher-guided", "guided"}
        assert sum(row.is_floor for row in of_metric) == 1
        assert all(row.fid >= 0 and math.isfinite(row.fid) for row in of_metric)
        assert all(row.fid_std and row.kid is None for row in of_metric if not row.is_floor)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_samples_are_points_and_the_same_sweep_measures_nothing_again(bench):
    run = lab.load(bench / "runs" / "flow")
    points = lab.sample(run, n=30)
    assert points.shape == (30, 2, 1, 1) and points.dtype == torch.float32
    assert points.flatten(1).std(0).min() > 0 and run.spec.codec == "identity"
    before = (bench / "runs" / "curves.jsonl").read_bytes()
    code, errors = run_script("evaluate", str(bench / "configs" / "toy" / "curve.yaml"))
    assert code == 0 and "0 of" in errors
    assert (bench / "runs" / "curves.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pictures_and_page_are_published(bench):
    results = bench / "results"
    publish(bench / "runs", results)
    for name in ("curves.png", "samples.png", "trajectories.png", "report.html", "table.md"):
        assert (results / name).stat().st_size > 1000, name
    assert len(list(results.glob("curves*.png"))) == 2
    strips = list((results / "samples").glob("*.png"))
    assert strips and all(Image.open(strip).size == (160, 160) for strip in strips)
    code, errors = run_script(
        "sample", str(bench / "runs" / "flow"), "--out", str(bench / "s.png"), "--count", "9"
    )
    assert code == 0, errors
    code, errors = run_script(
        "sample", str(bench / "runs" / "flow"), "--folder", str(bench / "single")
    )
    assert code == 2 and "points are written as one picture" in errors


def test_a_scatter_puts_points_where_they_are():
    """The first coordinate to the right, the second upwards, outside nothing."""
    points = torch.tensor([[1.0, 2.0], [-2.0, -1.0], [9.0, 0.0]]).view(-1, 2, 1, 1)
    dark = (scatter(points, side=100).float().mean(0) < 200).nonzero()
    cells = [[int((PLANE - y) / (2 * PLANE) * 100), int((x + PLANE) / (2 * PLANE) * 100)]
             for x, y in ((1.0, 2.0), (-2.0, -1.0))]  # fmt: skip
    assert sorted(dark.tolist()) == sorted(cells)
    behind = scatter(points[:0], load_data("gaussians", "test").density, side=100)
    assert (behind[2] < 255).any() and (behind[0] == 255).all()  # yellow


def test_detours_and_crossings_of_known_ways():
    across = torch.tensor([[[-1.0, -1], [1, 1]], [[-1, 1], [1, -1]], [[5, 5], [6, 5]]])
    assert crossing(across.double()) == pytest.approx(1 / 3)
    assert detour(across.double()) == pytest.approx(1)
    corner = torch.tensor([[[0.0, 0], [3, 0], [3, 4]]]).double()
    assert detour(corner) == pytest.approx(7 / 5)
    assert crossing(torch.cat([corner, corner + torch.tensor([10.0, 0])])) == 0


def _exact(path: str, means: torch.Tensor, std: float) -> SimpleNamespace:
    model = mixture_model(
        make_path(path), means[:, :, None, None], torch.full((len(means),), std),
        torch.ones(len(means)),
    )  # fmt: skip
    spec = model.spec.model_copy(update={"channels": 2, "side": 1, "codec": "identity"})
    model = type(model)(model.network, spec)

    model.network.device = torch.nn.Parameter(torch.zeros(0, dtype=torch.float64))  # says where
    return SimpleNamespace(model=model, spec=spec)


@pytest.mark.parametrize("path", ["rectified", "vp-cosine"])
def test_ways_of_a_centred_gaussian_are_straight_and_of_a_mixture_are_not(path):
    """The flow to N(0, s^2 I) scales every point: straight on any path in these coordinates, and
    no two of its ways cross."""
    setting = Setting(sampler="euler", steps=16)
    found = ways(_exact(path, torch.zeros(1, 2), 0.3), setting, 20, 0)
    assert found.shape == (20, 17, 2)
    x, y = (found / found[:, :1].norm(dim=2, keepdim=True)).unbind(2)
    np.testing.assert_allclose(x * y[:, :1], y * x[:, :1], atol=1e-6)  # each on its ray
    assert 1 <= detour(found) < 1.02 and crossing(found) == 0  # the width dips before it ends
    mixture = eight_gaussians()
    run = _exact(path, mixture.means, mixture.std)
    bent = ways(run, setting, 20, 0)
    assert detour(bent) > 1.01
    ends = sample_images(run.model, setting, torch.arange(20)).flatten(1)
    np.testing.assert_allclose(bent[:, -1], ends, atol=1e-6)
