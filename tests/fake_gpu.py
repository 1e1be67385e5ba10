"""A fake GPU: tracks on which device every tensor is, and refuses what torch would refuse.

Within `fake_gpu()` torch reports a GPU. A tensor made or moved there lies in CPU memory and is marked, so its numbers
are those of the CPU; an operation on tensors of both devices, or a conversion of a GPU tensor to numpy, raises. Streams
and events do nothing. The numerics of CUDA's kernels are not tested.
"""

from __future__ import annotations

import contextlib
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
INDEXING = {"__getitem__", "__setitem__", "index_put_"}
COPYING = {"copy_", "__set__", "_has_compatible_shallow_copy_type"}


class DeviceMismatch(RuntimeError):
    """An operation that a real GPU would refuse."""


class DeviceTracker(TorchFunctionMode):
    """Tracks which memory is on the fake GPU."""

    def __init__(self) -> None:
        super().__init__()
        self._marked: dict[int, StorageWeakRef] = {}
        """Marked storages by address; the weak reference keeps the address from being reused."""
        self.is_paused = False
        self.launched = 0
        """Number of kernel launches."""

    def device_of(self, tensor: Tensor) -> torch.device:
        return GPU if tensor.untyped_storage()._cdata in self._marked else CPU

    def _mark(self, found: Any, device: torch.device) -> Any:
        """Mark the tensors of a result as on the GPU; a storage stays where it was made."""
        for tensor in tree_leaves(found) if device == GPU else ():
            if isinstance(tensor, Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                self._marked[reference.cdata] = reference
        if len(self._marked) > 10_000:
            self._marked = {key: one for key, one in self._marked.items() if not one.expired()}
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.is_paused:
            return func(*args, **kwargs)
        name, owner = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        if owner is Tensor.device:
            return self.device_of(args[0]) if self.device_of(args[0]) == GPU else func(*args)
        if owner is Tensor.is_cuda:
            return self.device_of(args[0]) == GPU
        if owner is Tensor.grad and name == "__get__":
            return self._mark(func(*args), self.device_of(args[0]))
        if name in ("numpy", "__array__") and self.device_of(args[0]) == GPU:
            raise DeviceMismatch(f"{name} of a tensor on the GPU")
        kwargs.pop("pin_memory", None)
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        wanted, args = self._wanted(name, func, args, kwargs)
        if wanted is not None and func in (torch.as_tensor, Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, args, kwargs, wanted)
        self._check(name, args, tensors)
        found = func(*args, **kwargs)
        if name in COPYING | {"__setitem__"}:
            return found
        on = [self.device_of(one) for one in tensors]
        return self._mark(found, wanted or (GPU if GPU in on else CPU))

    def _wanted(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[torch.device | None, Any]:
        """Return the device requested for the result, if any, and the arguments without it."""
        wanted = None
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta":
            wanted, kwargs["device"] = torch.device(kwargs["device"]), "cpu"
        if func in (Tensor.cpu, Tensor.cuda):
            return GPU if name == "cuda" else CPU, args[:1]
        if func is Tensor.to:
            args = list(args)
            for i, one in enumerate(args[1:], 1):
                if isinstance(one, torch.device | str):
                    wanted, args[i] = torch.device(one), "cpu"
                elif isinstance(one, Tensor):
                    wanted = self.device_of(one)
        assert wanted is None or wanted.type in ("cpu", "cuda"), wanted
        return wanted and (GPU if wanted.type == "cuda" else CPU), tuple(args)

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any], wanted: torch.device) -> Tensor:
        """Return the tensor on the wanted device; a copy if it was on the other."""
        given = args[0] if isinstance(args[0], Tensor) else None
        found = args[0] if func in (Tensor.cpu, Tensor.cuda) else func(*args, **kwargs)
        if given is not None and self.device_of(given) == wanted:
            return self._mark(found, wanted)
        return self._mark(found.clone(), wanted)

    def _check(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        if name in COPYING:
            return
        on_gpu = [one for one in tensors if self.device_of(one) == GPU]
        on_cpu = [one for one in tensors if self.device_of(one) == CPU and one.ndim > 0]
        if name in INDEXING and on_gpu and args and self.device_of(args[0]) == GPU:
            values = tree_leaves(args[2:]) if name == "__setitem__" else []
            on_cpu = [one for one in values if isinstance(one, Tensor) and self.device_of(one) == CPU and one.ndim > 0]
        if on_gpu and on_cpu:
            raise DeviceMismatch(f"{name} of tensors on the GPU and on the CPU: {[tuple(t.shape) for t in tensors]}")


class _Event:
    """A CUDA event of a stream that has always finished."""

    def __init__(self, enable_timing: bool = False):
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        return None

    def elapsed_time(self, other: _Event) -> float:
        return 1e3 * (other.at - self.at)


class _Stream:
    def __init__(self, device: Any = None):
        pass

    def record_event(self) -> _Event:
        return _Event()


class _Generator:
    """A generator of the CPU for any device."""

    real = torch.Generator

    def __new__(cls, device: Any = "cpu") -> Any:
        return cls.real("cpu")


_PROPERTIES = types.SimpleNamespace(name="a fake GPU", total_memory=10**9, multi_processor_count=7, major=9, minor=0)


@contextlib.contextmanager
def fake_gpu(free: int = 10**9) -> Iterator[DeviceTracker]:
    """Provide a fake GPU with `free` bytes of free memory within this context."""
    tracker = DeviceTracker()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "is_available": lambda: True, "Event": _Event, "Stream": _Stream, "synchronize": lambda *_: None,
            "current_stream": lambda *_: _Stream(), "stream": lambda _: contextlib.nullcontext(),
            "get_device_name": lambda *_: "a fake GPU", "mem_get_info": lambda *_: (free, 10**9),
            "memory_reserved": lambda *_: 0, "memory_allocated": lambda *_: 0, "is_initialized": lambda: True,
            "max_memory_allocated": lambda *_: 7 * 10**6, "reset_peak_memory_stats": lambda *_: None,
            "empty_cache": lambda: None, "get_device_properties": lambda *_: _PROPERTIES,
            "is_current_stream_capturing": lambda: False,
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        _check_triton_kernels(tracker, patch)
        with tracker:
            yield tracker


def _check_triton_kernels(tracker: DeviceTracker, patch: pytest.MonkeyPatch) -> None:
    """Make kernels in Triton's interpreter refuse tensors that are not on the GPU, and count launches."""
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        return
    whole = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if any(tracker.device_of(one) == CPU for one in given):
            raise DeviceMismatch(f"{self.fn.__name__} got a tensor of the CPU")
        tracker.launched += 1
        tracker.is_paused = True
        try:
            return whole(self, *args, **kwargs)
        finally:
            tracker.is_paused = False

    patch.setattr(GridExecutor, "__call__", launch)
