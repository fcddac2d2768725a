"""One or several processes: who does which samples, and how the results come together in order."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, reduce
from torch import Tensor, nn

from core.errors import UserError, nearest
from core.precision import allow_tf32

T = TypeVar("T")
DEVICES = ("cpu", "cuda", "mps", "xpu")


def check_device(name: str) -> None:
    """Raises UserError where this machine has no device of that name, such as "cuda:1"."""
    kind, colon, number = name.partition(":")
    if kind not in DEVICES or (colon and not number.isdecimal()):
        raise UserError(f"unknown device '{name}'{nearest(kind, DEVICES)}")
    count = 1
    if kind != "cpu":
        here = torch.accelerator.current_accelerator()
        count = torch.accelerator.device_count() if here and here.type == kind else 0
    if int(number or 0) >= count:
        raise UserError(f"device '{name}' is not here: cpu always is, and null takes the best one")
    if not has_float64(torch.device(name)):
        raise UserError(f"device '{name}' has no float64, which times and noise need: take cpu")


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64: Apple's GPUs and some of Intel's do not."""
    try:
        return bool(torch.zeros(1, dtype=torch.float64, device=device).eq(0).all())
    except (TypeError, RuntimeError):
        return False


def _usable_accelerator() -> bool:
    """Whether there is an accelerator that this program runs on; where one is passed over, a line
    says why."""
    if not torch.accelerator.is_available():
        return False
    device = torch.accelerator.current_accelerator()
    if has_float64(device):
        return True
    if int(os.environ.get("RANK", "0")) == 0:
        print(
            f"device '{device.type}' has no float64, which times and noise need: this runs on the "
            "processor",
            file=sys.stderr,
        )
    return False


def start_processes(cpu: bool = False, tf32: bool = False) -> PartialState:
    """The state that `torchrun` or `accelerate launch` prepared, or a single process without a
    launcher.

    Args:
        cpu: stay on the processor even if there is a GPU; without one that has float64, no other
            choice is made.
        tf32: let a GPU multiply float32 in TensorFloat-32.

    Raises:
        UserError: a launcher started several processes that do not know of each other; each would
            do and write everything.
    """
    cpu = cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    # Left to itself, accelerate takes launched processes on a machine without a GPU for so many
    # single ones.
    cpu = cpu or not _usable_accelerator()
    allow_tf32(tf32)
    # The timeout is long because the others wait while the main process computes a metric.
    _end_with_launcher()
    state = PartialState(cpu=cpu, timeout=timedelta(hours=24))
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != state.num_processes:
        raise UserError(
            f"{launched} processes were launched but accelerate joined {state.num_processes}: "
            "use torchrun --standalone --nproc_per_node N -m scripts.NAME ..."
        )
    return state


def _end_with_launcher() -> None:
    """Ends this process when its launcher is gone, as after kill -9: processes that nobody looks
    after would go on training into a folder that the same command is started for again."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def share_of(total: int, state: PartialState) -> Tensor:
    """int64: the contiguous run of sample indices 0..total - 1 that belongs to this process."""
    size = -(-total // state.num_processes)
    return torch.arange(total)[state.process_index * size : (state.process_index + 1) * size]


def gather_in_order(part: Tensor, total: int, state: PartialState) -> Tensor:
    """The whole [total, ...] on every process's CPU, from each one's `share_of` it."""
    if state.num_processes == 1:
        return part
    size = -(-total // state.num_processes)
    padded = part.new_zeros(size, *part.shape[1:])
    padded[: len(part)] = part
    return gather(padded.to(state.device)).cpu()[:total]


def average_gradients(module: nn.Module) -> None:
    """Averages the gradients of a network that the trainer does not wrap over the processes."""
    if PartialState().num_processes > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "mean")


def from_main(value: T, state: PartialState) -> T:
    """What the main process has, on all of them; what the others give is dropped."""
    if state.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def sum_over(values: list[float], state: PartialState) -> list[float]:
    """Each value summed over the processes."""
    if state.num_processes == 1:
        return values
    given = torch.tensor([values], dtype=torch.float64, device=state.device)
    return gather(given).sum(0).tolist()
