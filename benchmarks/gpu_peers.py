"""TopK steps with the sparse kernels of other libraries, on a GPU, if these libraries are installed.

    sparsify               SparseCoder of eai-sparsify: its fused encoder, its decoder in Triton, its own autocast
    sparse_autoencoder     the kernels of openai/sparse_autoencoder, put together as its train.py does: a dense encoder,
                           torch.topk, and Triton for decoding and for both gradients

Each is a whole step: forward, loss, backward, removal of the radial component of W_dec's gradient, fused Adam,
renormalised rows. Products are bfloat16. There is no AuxK. Only the parts that their training loops leave to the user
are implemented here; both start at the same dictionary as jumpahead's SAEs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import Tensor


class Peer(ABC):
    """One library's TopK SAE in training."""

    module: ClassVar[str]
    package: ClassVar[str]
    """Its name in the package index, or its repository."""
    kernels: ClassVar[str]
    """The module with its kernels, which must be importable."""

    @abstractmethod
    def __init__(self, dictionary: Tensor, k: int, lr: float):
        """dictionary [M, d], unit rows: W_dec, and W_encᵀ."""

    @abstractmethod
    def step(self, x: Tensor) -> None:
        """Train on x [B, d]."""

    @abstractmethod
    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices and values [n, k] of the features of x [n, d]."""


def adam(parameters: list[Tensor], lr: float) -> torch.optim.Adam:
    """Return the optimizer of the dense steps: fused Adam with β₁ = 0."""
    return torch.optim.Adam(parameters, lr=lr, betas=(0.0, 0.999), fused=parameters[0].is_cuda)


@final
class Sparsify(Peer):
    module, package, kernels = "sparsify", "eai-sparsify", "sparsify.sparse_coder"

    def __init__(self, dictionary: Tensor, k: int, lr: float):
        with contextlib.redirect_stdout(io.StringIO()):
            coders, config = importlib.import_module(self.kernels), importlib.import_module("sparsify.config")
        width, d = dictionary.shape
        settings = config.SparseCoderConfig(num_latents=width, k=k)
        with torch.device(dictionary.device):
            self.coder = coders.SparseCoder(d, settings, device=dictionary.device)
        for matrix in (self.coder.encoder.weight, self.coder.W_dec):
            matrix.data.copy_(dictionary)
        self.adam = adam(list(self.coder.parameters()), lr)

    def step(self, x: Tensor) -> None:
        self.coder.set_decoder_norm_to_unit_norm()
        self.coder(x).fvu.backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices, _ = self.coder.encode(x)
        return indices, values


@final
class OpenAI(Peer):
    module, package, kernels = "sparse_autoencoder", "openai/sparse_autoencoder", "sparse_autoencoder.kernels"

    def __init__(self, dictionary: Tensor, k: int, lr: float):
        self.lib, self.k, (width, d) = importlib.import_module(self.kernels), k, dictionary.shape
        self.encoder = dictionary.clone().requires_grad_()
        self.decoder = dictionary.clone().T.requires_grad_()  # their kernels require a contiguous transpose
        self.bias = torch.zeros(width, device=dictionary.device, requires_grad=True)
        self.pre_bias = torch.zeros(d, device=dictionary.device, requires_grad=True)
        self.adam = adam([self.encoder, self.decoder, self.bias, self.pre_bias], lr)

    def step(self, x: Tensor) -> None:
        lib, adam = self.lib, self.adam
        indices, values = _Encoder.apply(x, self.pre_bias, self.encoder, self.bias, self.k, lib)
        x_hat = lib.TritonDecoderAutograd.apply(indices, torch.relu(values), self.decoder) + self.pre_bias
        (x_hat - x).square().mean().backward()
        gradient = self.decoder.grad
        assert gradient is not None
        along = (self.decoder.detach() * gradient).sum(0)
        lib.triton_add_mul_(gradient, along, self.decoder.detach(), c=-1)
        adam.step()
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.decoder /= self.decoder.norm(dim=0)

    @torch.no_grad()
    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        indices, values = _Encoder.apply(x, self.pre_bias, self.encoder, self.bias, self.k, self.lib)
        return indices, values


class _Encoder(torch.autograd.Function):
    """The k largest pre-activations: dense forward pass, sparse backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pre_bias: Tensor, weight: Tensor, bias: Tensor, k: int, lib: Any) -> Any:
        x = x - pre_bias
        pre = torch.nn.functional.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
        values, indices = torch.topk(pre, k, dim=-1)
        ctx.save_for_backward(x, weight, indices)
        ctx.lib = lib
        return indices, values.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, indices = ctx.saved_tensors
        gradient = gradients[1].contiguous()
        total = torch.zeros(len(weight), device=x.device).scatter_add_(0, indices.flatten(), gradient.flatten())
        rows = ctx.lib.triton_sparse_transpose_dense_matmul(indices, gradient, x, N=len(weight))
        return None, -(total @ weight), rows, total, None, None


PEERS: tuple[type[Peer], ...] = (Sparsify, OpenAI)
