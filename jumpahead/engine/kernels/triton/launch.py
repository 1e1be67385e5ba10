"""Launch parameters of the Triton kernels, and views of tensors in the form that they take."""

from __future__ import annotations

from torch import Tensor, bfloat16, int16


def as_int16(tensor: Tensor) -> Tensor:
    """View a bfloat16 tensor as int16; other tensors are unchanged."""
    return tensor.view(int16) if tensor.dtype == bfloat16 else tensor


def optional_int16(tensor: Tensor | None) -> Tensor | None:
    """View a bfloat16 tensor as int16; None stays None."""
    return None if tensor is None else as_int16(tensor)


def bf16_store_bytes(bf16: Tensor | None) -> int:
    """Return the bytes of a row that a thread stores at once: 8 if rows are 8-byte aligned, else 2; 0 for None."""
    return 0 if bf16 is None else 8 if bf16.shape[1] % 4 == 0 else 2


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n, and at least 1."""
    return 1 << (max(1, n) - 1).bit_length()


def warps_for(elements: int) -> int:
    """Return the number of warps for a tile: 32 elements per thread, 1 to 16 warps."""
    return max(1, min(16, elements // 1024))
