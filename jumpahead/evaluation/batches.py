"""SAEs ready to encode on a device, as many at once as its memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from jumpahead.engine import Kernels, SparseEncoder, kernel_layer
from jumpahead.sae.saved import SAE

GPU_MEMORY_SHARE = 0.7
"""Share of a GPU's free memory, less the logits, that SAEs may take; encoding needs the rest."""


def encoder_batches(
    saes: Mapping[str, SAE], device: torch.device | str, layer: Kernels | None, reserved: int
) -> Iterator[dict[str, SparseEncoder]]:
    """Yield the SAEs as encoders on the device, by name: on a GPU in batches that fit in its memory.

    The previous batch is freed before the next is built. reserved: bytes that are needed for other things.
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
    """Return the bytes of an SAE that encodes and decodes: float32 matrices, and W_enc in bfloat16 too."""
    return 10 * sae.width * sae.d
