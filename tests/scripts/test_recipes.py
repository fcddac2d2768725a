"""Every recipe of every data set, as its config stands, for a few images on a tiny network: teacher
to measured curve."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from core.config import parse, read_config
from core.training.config import parse_run_config
from eval.ablation.config import read_study
from eval.features.extractors import EXTRACTORS, INCEPTION, INCEPTION_BFLOAT16, Extractor
from eval.sweep.config import SweepConfig
from lab import method_class
from scripts.pairs_config import PairsConfig
from scripts.planner import Planner, read_configs
from tests.helpers.archives import write_cifar, write_idx
from tests.helpers.command_lines import run_script

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Brightness(Extractor):
    """Stands in for Inception, whose weights the tests do not have: 8 random projections of the
    pixels."""

    metric_name = "FID"

    def __init__(self, name: str, device: str = "cpu", weights: None = None):
        self.name, self.device, self.width, self.sha256 = name, torch.device(device), 8, "0" * 64

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.flatten(1).float()
        return (
            pixels
            @ torch.randn(pixels.shape[1], 8, generator=torch.Generator().manual_seed(0))
            / 255
        )


@pytest.mark.parametrize("recipe", ["teacher", "flow", "vae", "gan"])
def test_networks_on_cifar10_are_as_large_as_their_files_say(recipe):
    """The recipes below are tried with small ones."""
    file = CONFIGS / "cifar10" / f"{recipe}.yaml"
    values = read_config(file)
    network = parse_run_config(
        values, method_class(values["method"]["name"]), str(file)
    ).model.network.build(3, 32, 0)
    said = re.search(r"(\d+) M\s(?:# )?parameters", file.read_text())[1]
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == int(said)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda f: str(f)[-60:])
def test_every_config_is_read(file):
    """All keys are known and within their limits."""
    values = read_config(file)
    if "entries" in values:
        parse(SweepConfig, values, str(file))
    elif "count" in values:
        parse(PairsConfig, values, str(file))
    elif "question" in values:
        read_study(file)
    elif file.stem != "base":
        parse_run_config(values, method_class(values["method"]["name"]), str(file))


def succeeds(name: str, *arguments: str) -> None:
    code, errors = run_script(name, *arguments)
    assert code == 0, errors


@pytest.mark.parametrize(
    "dataset",
    [
        "digits",
        pytest.param("fashion_mnist", marks=pytest.mark.slow),
        pytest.param("cifar10", marks=pytest.mark.slow),
    ],
)
def test_recipes(dataset, tmp_path, monkeypatch):
    configs, runs = CONFIGS / dataset, tmp_path / "runs"
    common = ["train.batch_size=32", "log.samples=10", "log.steps=1", "optimizer.warmup=0"]
    common += ["budget.images=64", "budget.evals=null"]
    if dataset == "fashion_mnist":
        write_idx(tmp_path)
        common.append(f"data.root={tmp_path}")
    for name in (INCEPTION, INCEPTION_BFLOAT16):
        monkeypatch.setitem(EXTRACTORS, name, Brightness)
    if dataset == "cifar10":
        pytest.importorskip("torchvision")
        write_cifar(tmp_path, monkeypatch, 8)
        common.append(f"data.root={tmp_path}")
    widths = "widths=[8]" if dataset == "digits" else "widths=[8,8]"
    small = [f"model.network.{widths}", "model.network.blocks=1"]
    own = {name: small for name in ("teacher", "flow", "vae")}
    own |= {f"{name}_pairs": ["count=32", "steps=2", "shard=16"] for name in ("flow", "reflow")}
    own["gan"] = [*small, f"method.critic.{widths}", "method.critic.blocks=1"]
    own["moment_matching"] = ["method.among=32"]
    own["ot_flow"] = ["method.transport=32"]
    own["ppca"] = ["model.network.latent=2"]
    own["progressive"] = ["method.start_steps=16", "budget.images=448"]  # 7 shares of 64

    monkeypatch.setenv("CONFIGS", str(CONFIGS))
    planner = Planner(read_configs(dataset, str(runs)), shipped=None)
    for step in planner.plan(planner.everything()):
        _, _, script, *arguments = step.job.command
        more = own.get(step.job.name, [])
        more = [*common, *more, "--cpu"] if script == "scripts.train" else more
        succeeds(script, *arguments, *more)

    # the published curves' configs, at a few images, and for the sake of time only the points of
    # few steps
    import eval.sweep.run

    def short_plan(*given, plan=eval.sweep.run.plan):
        tasks = plan(*given)
        return [t for t in tasks if t.setting.steps <= 4] or tasks[:1]

    monkeypatch.setattr(eval.sweep.run, "plan", short_plan)
    curve = [
        "n=8",
        "sets=1",
        "bootstrap=2",
        f"runs={runs}",
        f"out={tmp_path}/curves.jsonl",
        f"cache={tmp_path}/cache",
    ]
    for file in sorted(configs.glob("curve*.yaml")):
        succeeds("evaluate", file, *curve)
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert {r["method"] for r in rows} >= {
        "ddpm",
        "progressive",
        "consistency",
        "rectified-flow",
        "reflow",
        "ppca",
        "vae",
        "gan",
    }
    assert ("floor" in {r["method"] for r in rows}) == (dataset != "cifar10")
    nfe = {(r["run"], r["sampler"], r["steps"]): r["nfe"] for r in rows}
    assert (
        nfe["teacher", "ddim", 4] == 4
        and nfe["teacher", "heun", 4] == 7
        and nfe["distilled-flow", "euler", 1] == 1
    )
    prices = {r["run"]: r["train_evals"] for r in rows if r["steps"] == 1}
    # PD: 3 for the student and 2 for its teacher an image, and its 1-step student is the end of all
    # five stages
    assert prices["teacher"] == 3 * 64 and prices["progressive"] == 5 * 448
    assert prices["reflow"] == 3 * 64 + 32 * 3  # Heun in 2 steps costs 3
