"""A GPU that is not there: tensors that say they lie on `cuda:0`, and whose numbers a CPU computes.

Every operation is looked at on its way. One between a tensor there and one on the CPU raises as it would with CUDA, and
so does reading numbers without `.cpu()`, or drawing them there with a generator of the CPU. What runs so asks nothing
of a GPU that it would refuse. Kernels, streams, memory and what a GPU rounds otherwise are not pretended.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
ACROSS = {"_to_copy", "copy_", "_local_scalar_dense", "_has_compatible_shallow_copy_type"}
"""Operations that take tensors of several devices."""
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operations whose indices may lie on the CPU."""
TWO_PLACES = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
UNREADABLE = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first."


class PretendedTensor(torch.Tensor):
    """`inner` is where its numbers are. C++ takes it for one of the CPU, or would guard a device that is not there."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> PretendedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CPU,
        )
        made.inner = inner
        return made

    device = property(lambda self: CUDA)
    is_cpu = property(lambda self: False)
    is_cuda = property(lambda self: True)

    def __repr__(self, **_: Any) -> str:
        return f"PretendedTensor({self.inner!r})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(UNREADABLE)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(UNREADABLE)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


_INSIDE: list[bool] = []
"""Of the calls at hand, innermost last: whether C++ makes what it needs where the call's arguments are."""


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on the CPU, once it is one that CUDA would take; its results are where CUDA would have them."""
    name = func._schema.name.split("::")[1]
    if name == "is_pinned":
        return False
    there = [one for one in tree_leaves((args, kwargs)) if isinstance(one, PretendedTensor)]
    here = [one for one in tree_leaves((args, kwargs)) if _is_of_the_cpu(one)]
    writes = func._schema.is_mutable and bool(args) and isinstance(args[0], torch.Tensor)
    if there and name not in ACROSS:
        for one in here:
            alone = one.ndim == 0 and not (writes and one is args[0])
            index = name in INDEXED and one is not args[0] and one.dtype in (torch.int64, torch.bool)
            if not alone and not index:
                raise RuntimeError(f"{TWO_PLACES} ({func})")
    goes = CUDA if there else None
    if writes:
        goes = CUDA if isinstance(args[0], PretendedTensor) else None
    if (asked := kwargs.get("device")) is not None:
        goes = CUDA if torch.device(asked).type == "cuda" or (_INSIDE and _INSIDE[-1]) else torch.device(asked)
    if goes == CUDA and kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    known = {id(one.inner): one for one in there} | {id(one): one for one in here}
    args, kwargs = tree_map(lambda one: one.inner if isinstance(one, PretendedTensor) else one, (args, kwargs))
    if asked is not None and goes == CUDA:
        kwargs["device"] = CPU
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    found = args[0] if name == "_pin_memory" else func(*args, **kwargs)

    def placed(one: Any) -> Any:
        if not isinstance(one, torch.Tensor):
            return one
        if id(one) in known and name != "_to_copy":
            return known[id(one)]
        return PretendedTensor(one) if goes == CUDA and one.device == CPU else one

    return tree_map(placed, found)


def _is_of_the_cpu(one: Any) -> bool:
    return isinstance(one, torch.Tensor) and not isinstance(one, PretendedTensor) and one.device == CPU


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """What is called from Python: to which device it goes, where C++ would ask CUDA before any operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.cuda, torch.Tensor.cpu):
            func, args = torch.Tensor.to, (args[0], CUDA if func is torch.Tensor.cuda else CPU)
        if func in (torch.Tensor.to, torch.Tensor.type_as):
            device, dtype = _destination(args, kwargs)
            if device is not None and device.type in ("cuda", "cpu"):
                one = args[0]
                if one.device.type == device.type and not kwargs.get("copy") and dtype in (None, one.dtype):
                    return one
                more = {} if dtype is None else {"dtype": dtype}
                to = CUDA if device.type == "cuda" else CPU
                return _within(False, torch.ops.aten._to_copy.default, one, device=to, **more)
        device = kwargs.get("device")
        of_values = func in (torch.tensor, torch.as_tensor, torch.asarray)
        if of_values and device is not None and torch.device(device).type == "cuda":
            return func(*args, **{**kwargs, "device": None}).to(CUDA)
        there = any(isinstance(one, PretendedTensor) for one in tree_leaves((args, kwargs)))
        return _within(there and device is None, func, *args, **kwargs)


def _within(inside: bool, func: Any, *args: Any, **kwargs: Any) -> Any:
    _INSIDE.append(inside)
    try:
        return func(*args, **kwargs)
    finally:
        _INSIDE.pop()


def _destination(args: Any, kwargs: Any) -> tuple[torch.device | None, torch.dtype | None]:
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for one in (*args[1:], kwargs.get("other")):
        if isinstance(one, torch.Tensor):
            device, dtype = one.device, one.dtype
        elif isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, str | torch.device):
            device = one
    return None if device is None else torch.device(device), dtype


class _Event:
    def __init__(self, **_: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Autocast(torch.autocast):
    """For what C++ takes for tensors of the CPU."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


@contextmanager
def _modes() -> Generator[None]:
    with _Operations(), _Calls():
        yield


@contextmanager
def pretended_gpu() -> Generator[None]:
    """In here torch has one GPU, in threads that begin here too."""
    card = SimpleNamespace(name="a pretended GPU", total_memory=80 << 30, major=9, minor=0, multi_processor_count=132)
    told: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True, "init": None,
        "_lazy_init": None, "set_device": None, "synchronize": None, "empty_cache": None, "memory_stats": {},
        "reset_peak_memory_stats": None, "max_memory_allocated": 1 << 30, "memory_allocated": 1 << 30,
        "max_memory_reserved": 1 << 30, "memory_reserved": 1 << 30, "mem_get_info": (70 << 30, 80 << 30),
        "get_device_name": card.name, "get_device_properties": card, "get_device_capability": (9, 0),
        "is_bf16_supported": True, "is_current_stream_capturing": False, "manual_seed": None, "manual_seed_all": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
        "get_rng_state_all": [], "set_rng_state_all": None,
    }  # fmt: skip
    begin = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with _modes():
            begin(thread)

    with ExitStack() as stack:
        for name, value in told.items():
            stack.enter_context(patch.object(torch.cuda, name, lambda *_, value=value, **__: value))
        stack.enter_context(patch.object(torch.cuda, "Event", _Event))
        stack.enter_context(patch.object(torch, "autocast", _Autocast))
        stream = SimpleNamespace(is_capturing=lambda: False)
        stack.enter_context(patch.object(torch.accelerator, "current_stream", lambda *_: stream))
        stack.enter_context(patch.object(threading.Thread, "run", run))
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's class cannot change in place
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        stack.enter_context(_modes())
        yield
