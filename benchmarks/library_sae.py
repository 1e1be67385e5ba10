"""The interface of a library's SAE in training, and the weights that all of them start from.

B tokens · d dimensions · M features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from jumpahead.sae.parameters import threshold_for_l0

COMPARED_ARCHITECTURES = ("jumprelu", "topk", "gated")


NOMINAL_STEPS = 1_000_000
"""Length of the run that a library is configured for: no schedule ends during the measurement."""


DEAD_AFTER = 1_000_000_000
"""Tokens, or steps, without firing: a feature is dead by every library's criterion."""


class StartingPoint(NamedTuple):
    """The weights that every library starts from: an SAE that fits its data, as after training."""

    w_enc: Tensor
    """[M, d]."""
    w_dec: Tensor
    """[M, d], unit rows."""
    b_dec: Tensor
    """[d]: subtracted before the encoder, added after the decoder."""
    threshold: float
    """On average `l0` of a token's pre-activations W_enc·(x − b_dec) exceed it."""
    l0: int
    """Active features per token."""
    tokens: int
    """B."""
    sample: Tensor
    """[n, d] activations for initialisation."""
    dead: Tensor | None = None
    """[M] bool: features that count as dead before every step. Their encoder rows are short, so that they do not fire,
    but their pre-activations are positive on half of the tokens. None: no dead features, and no AuxK."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return (M, d)."""
        return self.w_enc.shape[0], self.w_enc.shape[1]


def starting_point(dictionary: Tensor, sample: Tensor, tokens: int, l0: int, dead: float = 0.0) -> StartingPoint:
    """Return the starting point for the true dictionary [M, d]; a share `dead` of the features is dead."""
    width = len(dictionary)
    b_dec, w_enc, mask = sample.mean(0), dictionary.clone(), None
    if dead:
        mask = torch.zeros(width, dtype=torch.bool)
        mask[torch.randperm(width, generator=torch.Generator().manual_seed(1))[: round(dead * width)]] = True
        w_enc[mask] *= 0.05
    threshold = threshold_for_l0((sample - b_dec) @ w_enc.T, l0)
    return StartingPoint(w_enc, dictionary.clone(), b_dec, threshold, l0, tokens, sample, mask)


class ReconstructionStats(NamedTuple):
    """Sparsity and error of an SAE, as its own library computes them."""

    l0: float
    """Active features per token."""
    error: float
    """‖x − x̂‖² per token."""


class LibrarySAE(ABC):
    """One library's SAE in training."""

    title: ClassVar[str]
    package: ClassVar[str]
    """Its name in the package index."""
    module: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    aux: ClassVar[bool] = False
    """True if its TopK revives features that its own counters say are dead."""
    precision: ClassVar[str] = "highest"
    """The float32 matmul precision that it trains with by default: torch's, unless it sets another."""
    failed: str = ""
    """Why it is no longer run; empty if it works."""

    @abstractmethod
    def __init__(self, architecture: str, start: StartingPoint):
        """Create an SAE of one of `architectures`, at `start`."""

    def prepare(self) -> None:  # noqa: B027 — only libraries with dead features override it
        """Mark the dead features as dead again. Called before every step; not timed."""

    @abstractmethod
    def step(self, x: Tensor) -> None:
        """Train on one batch [B, d]: forward, loss, backward, decoder norm, optimizer."""

    @abstractmethod
    def evaluate(self, x: Tensor) -> ReconstructionStats:
        """Encode and decode x [n, d]; return L0 and error."""

    def close(self) -> None:  # noqa: B027 — most libraries start no threads
        """Stop threads."""


def reconstruction_stats(x: Tensor, features: Tensor, x_hat: Tensor) -> ReconstructionStats:
    """Return L0 and error of a reconstruction. features [n, M] or [n, k], x_hat [n, d]."""
    active = (features != 0).sum().item() / len(x)
    return ReconstructionStats(active, (x - x_hat).square().sum(1).mean().item())


def fill_(parameter: Any, value: Tensor | float) -> None:
    """Fill a parameter in place, in its own memory layout."""
    with torch.no_grad():
        parameter.copy_(value) if isinstance(value, Tensor) else parameter.fill_(value)
