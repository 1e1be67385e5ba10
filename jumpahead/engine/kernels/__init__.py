"""The kernel layers: `torch` runs everywhere, `numba` compiles for the CPU, `triton` compiles for a GPU."""

from __future__ import annotations

import importlib.util

from torch import device as Device  # the name `torch` is the submodule's here

from jumpahead.engine.interface import Kernels


def kernel_layer(name: str | None = None, device: Device | str = "cpu", *, is_async: bool = True) -> Kernels:
    """Return the kernel layer `torch`, `numba` or `triton`.

    name: by default `triton` for a GPU and `numba` for the CPU; `torch` if that library is not installed.
    is_async: whether steps on a GPU are launched without waiting for the device (`async_step.py`). Must be False for
    encoding, which reads its results at once.
    """
    device, note = Device(device), ""
    if name is None:
        name = "triton" if device.type == "cuda" else "numba"
        if importlib.util.find_spec(name) is None:
            name, note = "torch", f"{name} is not installed, with it steps are several times as fast"
    if name == "torch":
        from jumpahead.engine.kernels.torch.layer import TorchKernels

        return TorchKernels(note)
    if name == "triton":
        from jumpahead.engine.kernels.triton import TritonKernels

        return TritonKernels(device, is_async=is_async)
    assert name == "numba", f"there is no kernel layer '{name}'"
    from jumpahead.engine.kernels.numba import NumbaKernels

    return NumbaKernels()
