"""A GPU that is not there: where tensors are is kept account of, and what torch would refuse is refused.

Within `card()` torch says that it sees a GPU. A tensor made or moved there lies in the CPU's memory with a mark, so its
numbers are the CPU's; an operation on tensors of both places, or numpy asked for one that is there, raises. Streams and
events do nothing. What no test without a card can show, and this does not, is that CUDA's own kernels agree.
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

HERE, THERE = torch.device("cpu"), torch.device("cuda", 0)
INDEXING = {"__getitem__", "__setitem__", "index_put_"}
COPYING = {"copy_", "__set__", "_has_compatible_shallow_copy_type"}


class Refused(RuntimeError):
    """What a real card would have refused."""


class Account(TorchFunctionMode):
    """Which memory is on the card."""

    def __init__(self) -> None:
        super().__init__()
        self._marked: dict[int, StorageWeakRef] = {}
        """By address; a reference, though weak, keeps the address from being given away again."""
        self.is_off = False
        self.launched = 0
        """Kernels."""

    def place(self, tensor: Tensor) -> torch.device:
        return THERE if tensor.untyped_storage()._cdata in self._marked else HERE

    def _mark(self, found: Any, place: torch.device) -> Any:
        """What lies there once stays there: a copy elsewhere is another memory."""
        for tensor in tree_leaves(found) if place == THERE else ():
            if isinstance(tensor, Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                self._marked[reference.cdata] = reference
        if len(self._marked) > 10_000:
            self._marked = {key: one for key, one in self._marked.items() if not one.expired()}
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.is_off:
            return func(*args, **kwargs)
        name, owner = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        if owner is Tensor.device:
            return self.place(args[0]) if self.place(args[0]) == THERE else func(*args)
        if owner is Tensor.is_cuda:
            return self.place(args[0]) == THERE
        if owner is Tensor.grad and name == "__get__":
            return self._mark(func(*args), self.place(args[0]))
        if name in ("numpy", "__array__") and self.place(args[0]) == THERE:
            raise Refused(f"{name} of a tensor on the card")
        kwargs.pop("pin_memory", None)
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        wanted, args = self._wanted(name, func, args, kwargs)
        if wanted is not None and func in (torch.as_tensor, Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, args, kwargs, wanted)
        self._check(name, args, tensors)
        found = func(*args, **kwargs)
        if name in COPYING | {"__setitem__"}:
            return found
        on = [self.place(one) for one in tensors]
        return self._mark(found, wanted or (THERE if THERE in on else HERE))

    def _wanted(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[torch.device | None, Any]:
        """Where the result is asked to be, and the arguments without that."""
        wanted = None
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta":
            wanted, kwargs["device"] = torch.device(kwargs["device"]), "cpu"
        if func in (Tensor.cpu, Tensor.cuda):
            return THERE if name == "cuda" else HERE, args[:1]
        if func is Tensor.to:
            args = list(args)
            for i, one in enumerate(args[1:], 1):
                if isinstance(one, torch.device | str):
                    wanted, args[i] = torch.device(one), "cpu"
                elif isinstance(one, Tensor):
                    wanted = self.place(one)
        assert wanted is None or wanted.type in ("cpu", "cuda"), wanted
        return wanted and (THERE if wanted.type == "cuda" else HERE), tuple(args)

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any], wanted: torch.device) -> Tensor:
        """A copy where the place is another."""
        given = args[0] if isinstance(args[0], Tensor) else None
        found = args[0] if func in (Tensor.cpu, Tensor.cuda) else func(*args, **kwargs)
        if given is not None and self.place(given) == wanted:
            return self._mark(found, wanted)
        return self._mark(found.clone(), wanted)

    def _check(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        if name in COPYING:
            return
        there = [one for one in tensors if self.place(one) == THERE]
        here = [one for one in tensors if self.place(one) == HERE and one.ndim > 0]
        if name in INDEXING and there and args and self.place(args[0]) == THERE:
            values = tree_leaves(args[2:]) if name == "__setitem__" else []
            here = [one for one in values if isinstance(one, Tensor) and self.place(one) == HERE and one.ndim > 0]
        if there and here:
            raise Refused(f"{name} of tensors on the card and on the CPU: {[tuple(t.shape) for t in tensors]}")


class _Event:
    """Of a stream that is never behind."""

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
    """On any device one of the CPU's."""

    real = torch.Generator

    def __new__(cls, device: Any = "cpu") -> Any:
        return cls.real("cpu")


_PROPERTIES = types.SimpleNamespace(
    name="a card that is not there", total_memory=10**9, multi_processor_count=7, major=9, minor=0
)


@contextlib.contextmanager
def card(free: int = 10**9) -> Iterator[Account]:
    """Within this context there is a GPU, with `free` bytes to be had."""
    account = Account()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "is_available": lambda: True, "Event": _Event, "Stream": _Stream, "synchronize": lambda *_: None,
            "current_stream": lambda *_: _Stream(), "stream": lambda _: contextlib.nullcontext(),
            "get_device_name": lambda *_: "a card that is not there", "mem_get_info": lambda *_: (free, 10**9),
            "memory_reserved": lambda *_: 0, "memory_allocated": lambda *_: 0, "is_initialized": lambda: True,
            "max_memory_allocated": lambda *_: 7 * 10**6, "reset_peak_memory_stats": lambda *_: None,
            "empty_cache": lambda: None, "get_device_properties": lambda *_: _PROPERTIES,
            "is_current_stream_capturing": lambda: False,
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        _kernels(account, patch)
        with account:
            yield account


def _kernels(account: Account, patch: pytest.MonkeyPatch) -> None:
    """Triton's, in its interpreter: every tensor they are given has to be on the card."""
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        return
    whole = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if any(account.place(one) == HERE for one in given):
            raise Refused(f"{self.fn.__name__} was given a tensor of the CPU")
        account.launched += 1
        account.is_off = True
        try:
            return whole(self, *args, **kwargs)
        finally:
            account.is_off = False

    patch.setattr(GridExecutor, "__call__", launch)
