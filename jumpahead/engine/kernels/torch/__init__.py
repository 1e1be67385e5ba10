"""The kernel layer in torch operations."""

from __future__ import annotations

from jumpahead.engine.kernels.torch.layer import TorchKernels

__all__ = ["TorchKernels"]
