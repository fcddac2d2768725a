"""A few steps of training on one device, without a launcher and without folders."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

import lab
from core.config import read_config
from core.training.config import parse_run_config
from core.training.method import Context
from core.training.trainer import Trainer
from tests.helpers.laboratory import Laboratory
from tests.helpers.pretended_gpu import PretendedGpu


class OneDevice:
    """What the trainer asks of accelerate, for a single process."""

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, device: str):
        self.device, self.state = torch.device(device), self

    def prepare_model(self, network: nn.Module) -> nn.Module:
        return network.to(self.device)

    def no_sync(self, network: nn.Module):
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def trained_steps(
    laboratory: Laboratory,
    method: str,
    device: str,
    gpu: PretendedGpu | None = None,
    count: int = 3,
) -> tuple[dict[str, Tensor], int]:
    """All weights and averages of a method's shrunken config after `count` steps, and how often the
    last one waited for the GPU. Derivatives are differences: forward mode asks C++ for devices."""
    cls = lab.method_class(method)
    values = read_config(laboratory.file(method))
    if "derivative" in cls.Config.model_fields:
        values["method"]["derivative"] = "difference"
    config = parse_run_config(values, cls, "test")
    one, cache = OneDevice(device), Path(laboratory.cache)
    made = cls.from_config(
        config.method,
        Context(
            config.data,
            config.model,
            config.train.seed,
            one.device,
            lab.load,
            lab.feature_network,
            cache,
        ),
    )
    trainer = Trainer(config, made, one)
    waits = 0
    if trainer.stages:
        for role in made.roles.values():
            role.wrap(one)
        trainer._begin_stage()
        for _ in range(count):
            if gpu is not None:
                gpu.waits.clear()
            trainer._step()
            waits = gpu.waits.total() if gpu is not None else 0
    networks = {name: role.network for name, role in made.roles.items()}
    for name, role in made.roles.items():
        networks |= {f"{name} {average}": role.average(average) for average in role.averages}
    weights = {
        f"{name} {key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    return weights, waits
