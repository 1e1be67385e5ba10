"""Time per torch operation and per kernel call, summed into the stages of a training step.

On a CPU operations run one after the other, so a timer around each torch operation, or around each call of a kernel
layer, attributes all of a step's time. It adds a few microseconds per operation.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any, NamedTuple, final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MATRIX_PRODUCTS = frozenset(
    {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_int_mm", "aten::_scaled_mm"}
)
"""Names of torch's matrix products."""


class TimedOperation(NamedTuple):
    """One torch operation."""

    name: str
    """Such as `aten::mm`."""
    seconds: float
    result_numel: int
    """Number of elements of its first result."""
    largest_numel: int
    """Number of elements of the largest tensor that it reads or writes."""


class OperationTimer(TorchDispatchMode):
    """Context manager that times every torch operation; the result is in `operations`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[TimedOperation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - started
        results = [one for one in (result if isinstance(result, list | tuple) else [result]) if isinstance(one, Tensor)]
        sizes = [one.numel() for one in (*args, *results) if isinstance(one, Tensor)]
        first = results[0].numel() if results else 0
        self.operations.append(TimedOperation(func._schema.name, seconds, first, max(sizes, default=0)))
        return result


def dense_forward_stages(operations: Iterable[TimedOperation], batch: int, d: int, width: int) -> dict[str, float]:
    """Return the seconds per stage of a dense forward pass, from its operations in execution order.

    The first product is the encoder's. Later products with a B×d result are reconstructions: the first one is the
    decode stage; the others, and all B×M operations between the first and the last, are the auxiliary loss.
    The penalty (B×M operations after the last reconstruction) counts as elementwise.
    """
    ordered = list(operations)
    seconds: dict[str, float] = {"product": 0.0, "selection": 0.0, "decode": 0.0, "auxiliary": 0.0}
    encoder = next(i for i, one in enumerate(ordered) if one.name in MATRIX_PRODUCTS)
    decodes = [
        i
        for i, one in enumerate(ordered)
        if i > encoder and one.name in MATRIX_PRODUCTS and one.result_numel == batch * d
    ]
    first, last = (decodes[0], decodes[-1]) if decodes else (len(ordered), len(ordered))
    for i, one in enumerate(ordered):
        is_wide = one.largest_numel >= batch * width
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


SUPPORT_METHOD = "find_support"
"""The method of a kernel layer that computes the encoder product."""
STAGES_OF_METHOD = {
    "prepare_encoder": ("selection",),
    "centre_input": ("selection",),
    SUPPORT_METHOD: ("selection",),  # without its matrix product
    "canonical_preactivations": ("selection",),
    "write_exact": ("selection",),
    "kth_largest_bounds": ("selection",),
    "decode": ("decode", "auxiliary"),
    "support_entries": ("selection",),
    "sum_per_feature": ("backward",),
    "count_active_per_feature": ("backward",),
    "sum_gradient_per_feature": ("backward",),
    "count_active_per_token": ("backward",),
    "update_rows": ("rows",),
    "apply_row_gradients": ("rows",),
    "matmul": ("dense_features",),
}
"""Method of a kernel layer → stage of its first call in a step, stage of its later calls. A method that is not listed
is a stage of its own, such as `fold()`."""


class KernelCall(NamedTuple):
    """One call of a kernel layer's method."""

    method: str
    seconds: float
    product_seconds: float = 0.0
    """Of these, seconds in torch's matrix products on the calling thread; measured for SUPPORT_METHOD only."""


@final
class TimedKernels:
    """A proxy of a kernel layer that times every call of its methods; the result is in `calls`."""

    def __init__(self, layer: Any):
        self._layer = layer
        self.calls: list[KernelCall] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._layer, name)
        if not callable(value):
            return value

        def timed(*args: Any, **kwargs: Any) -> Any:
            timer = OperationTimer()
            started = time.perf_counter()
            with timer if name == SUPPORT_METHOD else contextlib.nullcontext():
                result = value(*args, **kwargs)
            seconds = time.perf_counter() - started
            product_seconds = sum(one.seconds for one in timer.operations if one.name in MATRIX_PRODUCTS)
            self.calls.append(KernelCall(name, seconds, product_seconds))
            return result

        return timed


def sparse_step_stages(calls: Iterable[KernelCall], step_seconds: float) -> dict[str, float]:
    """Return the seconds per stage of a step of the sparse engine; time outside the kernel calls is stage `rule`."""
    seconds: dict[str, float] = {"product": 0.0}
    call_counts: dict[str, int] = {}
    for call in calls:
        stages = STAGES_OF_METHOD.get(call.method, (f"{call.method}()",))
        stage = stages[min(call_counts.get(call.method, 0), len(stages) - 1)]
        call_counts[call.method] = call_counts.get(call.method, 0) + 1
        seconds["product"] += call.product_seconds
        seconds[stage] = seconds.get(stage, 0.0) + call.seconds - call.product_seconds
    seconds["rule"] = max(0.0, step_seconds - sum(seconds.values()))
    return seconds
