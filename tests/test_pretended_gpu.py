"""On a pretended GPU: no tensor of the processor meets one of the GPU, bits are the processor's,
and the processor waits no more often than it must (tests/helpers/pretended_gpu.py)."""

from __future__ import annotations

import copy

import pytest
import torch

import lab
from core.condition import Condition
from core.networks.unet import UNetConfig
from core.noise import Noise
from core.pairs import generate_pairs
from core.sampling.sample import sample
from core.sampling.solvers import SAMPLERS
from core.setting import Setting
from tests.helpers.models import model_of
from tests.helpers.one_gpu import trained_steps
from tests.helpers.pretended_gpu import GPU, MixedDevices, OnGpu, held, pretended_gpu

# Path, prediction, guidance and threshold, so that each of them is met
KINDS = [
    ("vp-cosine", "v", 1.0, "none"),
    ("vp-linear", "eps", 2.0, "dynamic"),
    ("rectified", "u", 1.0, "static"),
    ("trigonometric", "v", 1.5, "none"),
]
JUMPS = ("consistency", "flow-map")  # they map to another time, and have no x0 to clip
# Waits of one step of training: indices and positions of the batch go to the GPU, and the finite
# norm of the gradient comes back. What a method adds is named here, so that no more is added unseen.
USUAL = 3
MORE = {
    # indices by what the solver or the boundary has to do for each sample
    "consistency": 15,
    "multistep-consistency": 14,
    "truncated-consistency": 11,
    "consistency-training": 5,
    "shortcut": 16,
    "self-distilled": 17,
    # several roles, each with its own step
    "sid": 5,
    "scm": 5,
    "gan-post-training": 5,
    "add": 3,
    "gan": 3,
    "dmd2": 1,
    # noise of stored pairs
    "flow-distillation": 3,
    "knowledge-distillation": 2,
    # whether the path's speed is finite at the times that were drawn
    "rectified-flow": 1,
    "meanflow": 1,
    "align-your-flow": 1,
    "soflow": 1,
}


def test_the_pretended_gpu_is_one():
    with pretended_gpu() as gpu:
        x = torch.arange(6.0, device="cuda").view(2, 3)
        assert isinstance(x, OnGpu) and x.device == GPU and not x.is_cpu
        with pytest.raises(MixedDevices, match="meet those of the GPU"):
            x + torch.ones(3)
        y = x * torch.tensor(2.0) + 1  # a scalar of the processor may
        assert gpu.waits.total() == 0
        assert y.sum().item() == 36.0 and gpu.waits["_local_scalar_dense"] == 1
        assert bool((y[y > 3] > 3).all()) and gpu.waits["index"] == 1
        assert torch.equal(y.cpu(), torch.arange(6.0).view(2, 3) * 2 + 1)
        assert gpu.waits["to the processor"] == 1
        with pytest.raises(TypeError, match="cpu"):
            y.numpy()
        net = torch.nn.Linear(3, 1).to("cuda")
        assert all(isinstance(p, OnGpu) and p.requires_grad for p in net.parameters())
        net(x).sum().backward()
        assert torch.equal(net.weight.grad.cpu(), x.cpu().sum(0, keepdim=True))
    with pytest.raises(RuntimeError, match="which is not on"):
        x + 1


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    shape = UNetConfig(widths=(8, 16), blocks=1, attention=(1,), head_width=8)
    network = shape.build(1, 8, 3).eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


# Those that evaluate often go through one kind alone
OFTEN = ("rk45", "rk4")
COMBINATIONS = [(s, *k) for s in SAMPLERS for k in KINDS if s not in OFTEN or k == KINDS[0]]


@pytest.mark.parametrize("sampler, path, prediction, guidance, threshold", COMBINATIONS)
def test_samplers(network, sampler, path, prediction, guidance, threshold):
    if sampler in JUMPS and threshold != "none":
        threshold = "none"
    model, index = model_of(network, path, prediction, num_classes=3), torch.arange(4)
    more = {"guidance_scale": guidance, "threshold": threshold}
    if sampler == "rk45":
        more["options"] = {"tolerance": 0.1}

    def drawn(model, device: str, steps: int) -> torch.Tensor:
        rng, label = Noise(0, index.to(device)), (index % 3).to(device)
        setting = Setting(sampler=sampler, steps=steps, **more)
        return sample(model, setting, rng, Condition(label=label))

    expected = drawn(model, "cpu", 2)
    with pretended_gpu() as gpu:
        there = copy.deepcopy(model).to("cuda")
        assert torch.equal(held(drawn(there, "cuda", 2)), expected)
        few = gpu.waits.total()
        drawn(there, "cuda", 2)
        again = gpu.waits.total() - few
        drawn(there, "cuda", 4)
        waits = (gpu.waits.total() - few - 2 * again) / 2
    if sampler != "rk45":  # it looks at the error of every step
        assert waits <= 1


@pytest.mark.parametrize("method", lab.METHODS)
def test_methods(laboratory, method):
    laboratory.needs(method)
    expected, _ = trained_steps(laboratory, method, "cpu")
    with pretended_gpu() as gpu:
        found, waits = trained_steps(laboratory, method, "cuda", gpu)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(held(found[name]), tensor), name
    assert waits <= USUAL + MORE.get(method, 0)


def test_pairs(laboratory, tmp_path):
    folder = laboratory.made("ddpm")
    recipe = {"count": 24, "sampler": "heun", "steps": 2, "seed": 1, "shard": 16}
    generate_pairs(lab.load(folder), tmp_path / "cpu", **recipe)
    with pretended_gpu():
        generate_pairs(lab.load(folder, device="cuda"), tmp_path / "gpu", **recipe)
    for name in ("000000.safetensors", "000001.safetensors"):
        one, two = ((tmp_path / device / name).read_bytes() for device in ("cpu", "gpu"))
        assert one == two
