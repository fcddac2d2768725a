"""A GPU for machines that have none. Its tensors keep their values on the processor and say that
they are on cuda:0; they refuse to meet tensors of the processor where CUDA's would, and every time
that the processor would wait for the GPU is counted.

For C++ they are tensors of the processor without storage, since autograd asks a real device for its
streams. Where C++ therefore makes a tensor of the processor, in the middle of a backward pass or by
a change of type, it is taken for one of the GPU.

What is not modelled: kernels and their rounding, autocast, memory, time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.autograd import forward_ad
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)


class MixedDevices(RuntimeError):
    """A tensor of the GPU met one of the processor."""


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU. held: its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="cpu",
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on the pretended GPU, which is not on")

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def cpu(self) -> torch.Tensor:
        return self.to("cpu")

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, *_, **__):
        raise TypeError("can't convert a tensor of cuda:0 to numpy: use Tensor.cpu() first")

    def __deepcopy__(self, memo: dict) -> OnGpu:
        if id(self) not in memo:
            copy = OnGpu(self.held.detach().clone()).requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copy = torch.nn.Parameter(copy, self.requires_grad)
            memo[id(self)] = copy
        return memo[id(self)]


def held(x: Any) -> Any:
    return x.held if isinstance(x, OnGpu) else x


def on_gpu(x: Any) -> Any:
    return OnGpu(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnGpu) else x


def _differentiating() -> bool:
    """Whether a formula of autograd's is at work, backward or forward."""
    return torch._C._current_graph_task_id() != -1 or forward_ad._current_level >= 0


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


# Operators whose result's shape or value the processor has to know
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2",
           "repeat_interleave", "bincount"}  # fmt: skip
INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}


class PretendedGpu(TorchDispatchMode):
    """While it is on, there is a GPU. waits: how often the processor waited for it, by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.moving = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func._schema.name.split("::")[-1]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        ours = [x for x in tensors if isinstance(x, OnGpu)]
        device = kwargs.get("device")
        if not ours and not _is_gpu(device):
            made = func(*args, **kwargs)
            return tree_map(on_gpu, made) if _differentiating() and not tensors else made
        if name in ("_to_copy", "copy_"):
            return self._copied(func, name, args, kwargs)
        self._refuse_mixtures(func, name, args, ours, tensors)
        if name in WAITING or (name in INDEXING and self._waits_for(args[1])):
            self.waits[name] += 1
        if device is not None:
            kwargs["device"] = "cpu"
        made = func(*tree_map(held, args), **tree_map(held, kwargs))
        if name in ("_local_scalar_dense", "equal"):
            return made
        if func._schema.is_mutable:
            return self._written(func, args, kwargs)
        return tree_map(on_gpu, made)

    def _copied(self, func, name: str, args: tuple, kwargs: dict) -> torch.Tensor:
        """Of another type or memory format, or between the devices, which waits but from the
        processor with non_blocking."""
        source = args[1] if name == "copy_" else args[0]
        if name == "copy_":
            to_gpu = isinstance(args[0], OnGpu)
        else:
            device = kwargs.pop("device", None)
            to_gpu = _is_gpu(device) or (isinstance(source, OnGpu) and not self.moving)
        if isinstance(source, OnGpu) != to_gpu and source.numel():
            way = "to the GPU" if to_gpu else "to the processor"
            scalar = to_gpu and source.ndim == 0  # travels with the kernel's arguments
            self.waits[way] += not scalar
        made = func(*tree_map(held, args), **kwargs)
        if name == "copy_":
            return args[0]
        return on_gpu(made) if to_gpu else made

    def _waits_for(self, indices) -> bool:
        """Booleans have to be counted, and indices of the processor have to travel."""
        given = [i for i in indices or () if isinstance(i, torch.Tensor)]
        return any(i.dtype == torch.bool or not isinstance(i, OnGpu) for i in given)

    def _refuse_mixtures(self, func, name: str, args: tuple, ours: list, tensors: list) -> None:
        others = [x for x in tensors if not isinstance(x, OnGpu)]
        if name in INDEXING and isinstance(args[0], OnGpu):
            others = [x for x in others if not any(x is i for i in args[1])]
        if ours and any(x.ndim > 0 for x in others):
            shapes = [tuple(x.shape) for x in others]
            raise MixedDevices(f"{func}: tensors of the processor {shapes} meet those of the GPU")

    def _written(self, func, args: tuple, kwargs: dict) -> Any:
        """What an operator in place hands back: its own arguments, or nothing."""
        if not func._schema.returns:
            return None
        written = [
            args[i] if i < len(args) else kwargs.get(argument.name)
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        return written[0] if len(func._schema.returns) == 1 else tuple(written)


def _to(self: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """Tensor.to, which would ask the driver."""
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    copy = kwargs.pop("copy", False)
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    options = {"dtype": dtype} | ({"memory_format": memory_format} if memory_format else {})
    if device is not None and device.type != self.device.type:
        mode = torch.utils._python_dispatch._get_current_dispatch_mode()
        mode.moving = True
        try:
            return torch.ops.aten._to_copy(self, device=device, **options)
        finally:
            mode.moving = False
    if (dtype is None or dtype == self.dtype) and memory_format is None and not copy:
        return self
    return torch.ops.aten._to_copy(self, **options)


_moved = torch.nn.Module.to


def _module_to(self: torch.nn.Module, *args, **kwargs) -> torch.nn.Module:
    """Module.to, which asks C++ for the device of a tensor that it is to be like."""
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    return _moved(self, *args, **kwargs)


_made = torch.tensor


def _tensor(data, *, device=None, **options) -> torch.Tensor:
    """torch.tensor, likewise: made on the processor and copied."""
    made = _made(data, **options)
    return made if device is None else made.to(device)


def _as_tensor(data, dtype=None, device=None) -> torch.Tensor:
    if isinstance(data, torch.Tensor):
        return data.to(device=device, dtype=dtype)
    return _tensor(data, dtype=dtype, device=device)


def _grouped(lists, with_indices: bool = False) -> dict:
    """PyTorch's grouping of tensors by device and type, which asks C++ for the device."""
    found: dict = {}
    for i, column in enumerate(zip(*lists, strict=True)):
        key = (column[0].device, column[0].dtype)
        groups, indices = found.setdefault(key, ([[] for _ in lists], []))
        for group, tensor in zip(groups, column, strict=True):
            group.append(tensor)
        indices.append(i)
    return found


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """PyTorch believes that there is one CUDA device."""
    answers = {
        "_lazy_init": None,
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "manual_seed_all": None,
        "set_rng_state": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "is_current_stream_capturing": False,
    }
    supported = (
        _foreach_utils._foreach_supported_types,
        optimizer._foreach_supported_types,
    )
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(
                mock.patch(f"torch.cuda.{name}", lambda *_, answer=answer, **__: answer)
            )
        quantile = torch.quantile  # its inner parts take the device from C++
        stack.enter_context(
            mock.patch("torch.quantile", lambda x, *a, **k: on_gpu(quantile(held(x), *a, **k)))
        )
        stream = mock.Mock(is_capturing=lambda: False)
        stack.enter_context(mock.patch("torch.accelerator.current_stream", lambda *_: stream))
        state = torch.get_rng_state
        stack.enter_context(mock.patch("torch.cuda.get_rng_state", lambda *_: state()))
        stack.enter_context(mock.patch.object(torch.Tensor, "to", _to))
        stack.enter_context(mock.patch.object(torch.nn.Module, "to", _module_to))
        stack.enter_context(mock.patch("torch.tensor", _tensor))
        stack.enter_context(mock.patch("torch.as_tensor", _as_tensor))
        stack.enter_context(
            mock.patch("torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype", _grouped)
        )
        for known in supported:
            if OnGpu not in known:
                known.append(OnGpu)
                stack.callback(known.remove, OnGpu)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        yield stack.enter_context(PretendedGpu())
