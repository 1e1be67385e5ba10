"""Where a step's time and memory go.

Operations run one after the other on a CPU, so a clock around each of torch's operations, or around each call of a
kernel layer, says where the time goes; it costs some microseconds per operation.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_int_mm", "aten::_scaled_mm"})
"""Torch's matrix products."""


class Operation(NamedTuple):
    """One operation of torch."""

    name: str
    """`aten::mm`."""
    seconds: float
    result: int
    """Numbers in its first result."""
    largest: int
    """Numbers in the largest tensor that it read or wrote."""


class OperationClock(TorchDispatchMode):
    """Within this context every operation of torch is timed."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begun = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - begun
        results = [one for one in (result if isinstance(result, list | tuple) else [result]) if isinstance(one, Tensor)]
        sizes = [one.numel() for one in (*args, *results) if isinstance(one, Tensor)]
        first = results[0].numel() if results else 0
        self.operations.append(Operation(func._schema.name, seconds, first, max(sizes, default=0)))
        return result


def forward_stages(operations: Iterable[Operation], batch: int, d: int, width: int) -> dict[str, float]:
    """Seconds per stage of a dense forward pass, from its operations in order.

    The first product is the encoder's. Products after it whose result is B×d are reconstructions: the first is the
    decode, the others, and what else happens between it and the last of them on B×M entries, are the auxiliary loss.
    The penalty, on B×M entries after the last reconstruction, counts as elementwise.
    """
    rest = list(operations)
    seconds: dict[str, float] = {"product": 0.0, "selection": 0.0, "decode": 0.0, "auxiliary": 0.0}
    encoder = next(i for i, one in enumerate(rest) if one.name in PRODUCTS)
    decodes = [i for i, one in enumerate(rest) if i > encoder and one.name in PRODUCTS and one.result == batch * d]
    first, last = (decodes[0], decodes[-1]) if decodes else (len(rest), len(rest))
    for i, one in enumerate(rest):
        is_wide = one.largest >= batch * width
        if i == encoder:
            stage = "product"
        elif i < first or (i > last and is_wide):
            stage = "selection"
        elif i == first:
            stage = "decode"
        elif i <= last:
            stage = "auxiliary" if is_wide or i in decodes else "decode"
        else:
            stage = "decode" if first == last else "auxiliary"
        seconds[stage] += one.seconds
    return seconds


SEARCH = "support"
"""The method of a kernel layer that holds the encoder product."""
STAGES_OF = {
    "encoder": ("selection",),
    "centre": ("selection",),
    SEARCH: ("selection",),  # what is left of it when the product is taken out
    "canonical": ("selection",),
    "settle": ("selection",),
    "kth": ("selection",),
    "decode": ("decode", "auxiliary"),
    "entries": ("selection",),
    "sums": ("backward",),
    "fired": ("backward",),
    "summed": ("backward",),
    "active": ("backward",),
    "rows": ("rows",),
    "given_rows": ("rows",),
    "product": ("popular",),
}
"""Method of a kernel layer → stage of its first call in a step, and of further ones. Others are stages: `fold()`."""


class Call(NamedTuple):
    """One call of a kernel."""

    method: str
    seconds: float
    products: float = 0.0
    """Seconds in torch's matrix products within it, as the calling thread took part in them; looked at in SEARCH
    alone."""


@final
class KernelClock:
    """Stands in for a kernel layer and times every call of its methods."""

    def __init__(self, layer: Any):
        self._layer = layer
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._layer, name)
        if not callable(value):
            return value

        def timed(*args: Any, **kwargs: Any) -> Any:
            clock = OperationClock()
            begun = time.perf_counter()
            with clock if name == SEARCH else contextlib.nullcontext():
                result = value(*args, **kwargs)
            seconds = time.perf_counter() - begun
            products = sum(one.seconds for one in clock.operations if one.name in PRODUCTS)
            self.calls.append(Call(name, seconds, products))
            return result

        return timed


def kernel_stages(calls: Iterable[Call], whole: float) -> dict[str, float]:
    """Seconds per stage of a step that took `whole` seconds, from its kernel calls; what is outside them is `rule`."""
    seconds: dict[str, float] = {"product": 0.0}
    seen: dict[str, int] = {}
    for call in calls:
        stages = STAGES_OF.get(call.method, (f"{call.method}()",))
        stage = stages[min(seen.get(call.method, 0), len(stages) - 1)]
        seen[call.method] = seen.get(call.method, 0) + 1
        seconds["product"] += call.products
        seconds[stage] = seconds.get(stage, 0.0) + call.seconds - call.products
    seconds["rule"] = max(0.0, whole - sum(seconds.values()))
    return seconds


# ---------------------------------------------------------------------------------------------- memory


@final
class PeakMemory:
    """Within this context the process's resident memory is watched by the system; `bytes` is how far it rose.

    Linux keeps the high-water mark, which is reset at the start, after freed memory has been given back. Everything
    counts: tensors, arrays, scratch of libraries. None where the system does not say.
    """

    bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._before = None
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = _status("VmHWM") if self._before is not None else None
        if peak is not None and self._before is not None:
            self.bytes = max(0, peak - self._before)


def _status(key: str) -> int | None:
    """A field of the process's status, in bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def available_bytes() -> float:
    """Memory that can be had without swapping; infinite where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return math.inf
