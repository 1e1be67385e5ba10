"""Load SAEs as encoders on a device, in batches that fit in the device's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from jumpahead.engine import Kernels, SparseEncoder, kernel_layer
from jumpahead.sae.saved import SAE

GPU_MEMORY_SHARE = 0.7
"""Fraction of (free GPU memory − memory for logits) that SAE weights may take; encoding needs the remainder."""


def encoder_batches(
    saes: Mapping[str, SAE], device: torch.device | str, layer: Kernels | None, reserved: int
) -> Iterator[dict[str, SparseEncoder]]:
    """Yield dicts of encoders on the device by SAE name; on a GPU, each dict fits in the GPU's memory.

    On a CPU all SAEs form one batch. The previous batch is freed before the next is built.

    layer: the kernel layer, by default the device's. reserved: bytes of GPU memory to leave free for logits.
    """
    device, names = torch.device(device), list(saes)
    layer = layer or kernel_layer(device=device, is_async=False)
    while names:
        room = float("inf")
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            room = GPU_MEMORY_SHARE * (free + unused - reserved)
        batch = [names.pop(0)]
        while names and room >= sum(encoder_bytes(saes[name]) for name in [*batch, names[0]]):
            batch.append(names.pop(0))
        encoders = {name: SparseEncoder(saes[name], layer, device) for name in batch}
        yield encoders
        encoders.clear()


def encoder_bytes(sae: SAE) -> int:
    """Return the memory of an SAE's encoder in bytes: W_enc and W_dec in float32, and W_enc in bfloat16."""
    return 10 * sae.width * sae.d
