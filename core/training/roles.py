"""Roles: the networks that learn, each with its optimiser, rate, clipping and moving averages.

The trainer treats every role alike. A method makes the roles; `begin` equips them for a run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from ema_pytorch import EMA
from ema_pytorch.post_hoc_ema import KarrasEMA
from pydantic import Field
from torch import Tensor, nn

from core.config import Strict
from core.model import Model
from core.networks.dropout import address_dropout
from core.processes import average_gradients
from core.training.snapshots import SnapshotConfig, power_averages

Share = Annotated[float, Field(ge=0, le=0.999_999)]
MOST = 1e30  # beyond it float32 soon overflows


class OptimizerConfig(Strict):
    """AdamW, its rate and the clipping of gradients."""

    lr: float = Field(default=2e-4, ge=0, le=MOST)
    """learning rate after the warm-up"""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """decay of the running means of the gradient and of its square"""
    eps: float = Field(default=1e-8, ge=1e-30, le=MOST)
    """added to the root of the running square"""
    weight_decay: float = Field(default=0.0, ge=0, le=1e6)
    """decoupled weight decay"""
    warmup: int = Field(default=0, ge=0)
    """images over which the rate rises to lr"""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """what the rate does over each stage; linear and cosine end at 0"""
    clip: float = Field(default=1.0, ge=0, le=MOST)
    """largest norm of the gradient; 0 = off"""


class AverageConfig(Strict):
    """A moving average of the weights."""

    half_life: float = Field(default=50_000, gt=0, le=MOST)
    """images after which a weight's influence has halved, once the warm-up is over: a cap, since
    short runs end in the warm-up; runs and rows say what it was at the end"""
    power: float | None = Field(default=2 / 3, gt=0, le=100)
    """warm-up of the decay by 1 - (1 + step)^-power (ema-pytorch's); null: none"""


def learning_rate(config: OptimizerConfig, stage_images: int, fraction: float) -> float:
    """The rate after `stage_images` of a stage of which `fraction` (0..1) is spent."""
    warm = min(1.0, (stage_images + 1) / config.warmup) if config.warmup else 1.0
    decays = {
        "constant": 1.0,
        "linear": 1 - fraction,
        "cosine": 0.5 * (1 + math.cos(math.pi * fraction)),
    }
    return config.lr * warm * decays[config.decay]


class Role:
    """A network that learns.

    Args:
        model: a Model, or a plain network such as a critic. Call it for targets, derivatives and
            other roles' losses.
        optimizer: None: the run's section.
        averages: moving averages by name, None where the run's section holds.
        penalised: the loss differentiates the network's own gradient, which DDP does not support:
            its gradients are averaged over processes after the backward pass instead.
        counted: whether its passes are evaluations in the price; not so a function of time alone.
        frozen: names of the network's parameters that never learn, besides those of its parts that
            stay as they are (a pretrained text encoder says so by `stays`).

    Attributes:
        network: the bare network.
        wrapped: the model behind accelerate's wrapper. A loss calls it exactly once, where the
            role's gradient is wanted; that is what keeps several processes in step.
    """

    def __init__(
        self,
        model: Model | nn.Module,
        optimizer: OptimizerConfig | None = None,
        averages: dict[str, AverageConfig | None] | None = None,
        penalised: bool = False,
        counted: bool = True,
        frozen: Iterable[str] = (),
    ):
        self.model, self.wrapped, self.penalised = model, model, penalised
        self.counted = counted
        self.network: nn.Module = model.network if isinstance(model, Model) else model
        address_dropout(self.network)
        self.frozen = frozenset(frozen) | _staying(self.network)
        self.learns(True)
        self.settings = optimizer
        self.average_settings = {"ema": None} if averages is None else averages
        self.prepared = self.network  # behind the wrapper
        self.averages: dict[str, EMA | KarrasEMA] = {}
        self.optimizer: torch.optim.AdamW | None = None
        self.rate = 0.0
        self.batch_size = 1

    def average(self, name: str = "ema") -> nn.Module:
        """The averaged network; the network itself as long as no run has begun."""
        return self.averages[name].ema_model if name in self.averages else self.network

    def half_life(self, name: str = "ema") -> float:
        """Images whose weights, the last ones, make up half of that average as it is now; where
        the weights it began with make up more than half, all images since."""
        average = self.averages[name]
        left, steps = 1.0, 0.0
        for step in range(int(average.step), 0, -1):
            decay = _decay(average, step)
            if left * decay <= 0.5:
                # Within a step as an exponential falls; a decay of 0 forgets all that was before.
                part = math.log(left / 0.5) / -math.log(decay) if decay else 1.0
                return (steps + part) * self.batch_size
            left, steps = left * decay, steps + 1
        return steps * self.batch_size

    # ------------------------------------------------------------ what the trainer does with it

    def begin(
        self,
        optimizer: OptimizerConfig,
        ema: AverageConfig,
        batch_size: int,
        snapshots: SnapshotConfig | None = None,
    ) -> None:
        """Equips the role for a run, whose sections hold where the method said nothing, and with
        the averages of which it keeps snapshots."""
        self.settings, self.batch_size = self.settings or optimizer, batch_size
        self.begin_stage()
        for name, config in self.average_settings.items():
            self.averages[name] = _average(self.network, config or ema, batch_size)
        self.averages |= power_averages(self.network, snapshots)

    def begin_stage(self) -> None:
        """A fresh optimiser and averages that start from the network as it is now."""
        c = self.settings
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=c.lr,
            betas=c.betas,
            eps=c.eps,
            weight_decay=c.weight_decay,
            foreach=True,
        )
        for average in self.averages.values():
            average.copy_params_from_model_to_ema()
            average.step.zero_()
            if isinstance(average, KarrasEMA):  # its first step takes the weights as they are
                average.initted.fill_(False)

    def wrap(self, accelerator: Accelerator) -> None:
        """Puts the network behind accelerate's wrapper, if there are several processes."""
        self.learns(True)  # the wrapper waits for whatever asks for gradients now
        if not self.penalised:
            self.prepared = accelerator.prepare_model(self.network)
            one = isinstance(self.model, Model)
            self.wrapped = self.model.with_network(self.prepared) if one else self.prepared

    def unwrap(self) -> None:
        self.wrapped, self.prepared = self.model, self.network

    def learns(self, yes: bool) -> None:
        """Whether the network's parameters ask for gradients."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(yes and name not in self.frozen)

    def step(
        self, stage_images: int, fraction: float, values: Tensor | None = None
    ) -> Tensor | None:
        """One step of the optimiser on the gradients that are there; returns their norm before
        clipping. Nothing is changed, and None returned, if the norm or one of the `values` that
        were differentiated is not finite: the one time that a step waits for a GPU."""
        self.rate = learning_rate(self.settings, stage_images, fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        if self.penalised:
            average_gradients(self.network)
        limit = self.settings.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        finite = torch.isfinite(norm)
        if values is not None:
            finite = finite & torch.isfinite(values).all()
        if stepped := bool(finite):
            self.optimizer.step()
            for average in self.averages.values():
                average.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.detach() if stepped else None

    def state(self) -> dict:
        """What a resumed run needs besides weights."""
        averages = {
            name: {"step": int(a.step), "initted": bool(a.initted)}
            for name, a in self.averages.items()
        }
        optimizer = self.optimizer.state_dict()
        return {"optimizer": optimizer, "averages": averages, "rate": self.rate}

    def load_state(self, state: dict) -> None:
        """Takes up what `state` gave; raises ValueError, or what its parts do, where it is another
        network's."""
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].shape != parameter.shape:
                    raise ValueError(f"{name} has the shape {tuple(moments[name].shape)}")
        self.rate = state.get("rate", 0.0)  # of its last step, which may be some turns ago
        for name, values in state["averages"].items():
            self.averages[name].step.fill_(values["step"])
            self.averages[name].initted.fill_(values["initted"])


def _staying(network: nn.Module) -> frozenset[str]:
    """Names of the parameters of those parts of the network that are as they were trained
    elsewhere."""
    parts = [(at, part) for at, part in network.named_modules() if getattr(part, "stays", False)]
    return frozenset(f"{at}.{name}" for at, part in parts for name, _ in part.named_parameters())


def _decay(average: EMA, step: int) -> float:
    """By which ema-pytorch multiplied the average in its update number `step`, from 1."""
    if average.min_value == average.beta:
        return average.beta
    if step == 1:
        return 0.0  # it takes the weights as they are
    return min(average.beta, 1 - step**-average.power)


def _average(network: nn.Module, config: AverageConfig, batch_size: int) -> EMA:
    beta = 0.5 ** (batch_size / config.half_life)
    constant = config.power is None
    average = EMA(
        network,
        ema_model=copy.deepcopy(network),  # left to itself, ema-pytorch ends the process on failure
        beta=beta,
        min_value=beta if constant else 0.0,
        power=1.0 if constant else config.power,
        # The first update takes the weights as they are; a constant average starts at once.
        update_after_step=-1 if constant else 0,
        update_every=1,
        include_online_model=False,
        use_foreach=True,
    )
    average.initted.fill_(constant)
    return average
