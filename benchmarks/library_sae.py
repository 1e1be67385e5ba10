"""TODO: one sentence that says what this module holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from jumpahead.sae.parameters import quantile_for_l0

COMPARED_ARCHITECTURES = ("jumprelu", "topk", "gated")


NOMINAL_STEPS = 1_000_000
"""Steps of the run that a contender believes to be in."""


DEAD_AFTER = 1_000_000_000
"""Tokens, or steps, without firing: dead by every library's measure."""


class StartingPoint(NamedTuple):
    """Where every contender starts: an SAE that fits its data, as after training."""

    w_enc: Tensor
    """[M, d]."""
    w_dec: Tensor
    """[M, d], unit rows."""
    b_dec: Tensor
    """[d]: subtracted before the encoder, added after the decoder."""
    threshold: float
    """What leaves `l0` of the π = W_enc·(x − b_dec) of a token above it, on average."""
    l0: int
    """Active features per token."""
    tokens: int
    """B."""
    sample: Tensor
    """[n, d] activations, for initialisations."""
    dead: Tensor | None = None
    """[M] bool: features that count as dead before every step; their encoder rows are short, so that they do not fire
    but their π is positive on half of the tokens. None: no dead features, and no AuxK."""

    @property
    def shape(self) -> tuple[int, int]:
        """(M, d)."""
        return self.w_enc.shape[0], self.w_enc.shape[1]


def starting_point(dictionary: Tensor, sample: Tensor, tokens: int, l0: int, dead: float = 0.0) -> StartingPoint:
    """From the true dictionary [M, d]; a share `dead` of the features is dead."""
    width = len(dictionary)
    b_dec, w_enc, mask = sample.mean(0), dictionary.clone(), None
    if dead:
        mask = torch.zeros(width, dtype=torch.bool)
        mask[torch.randperm(width, generator=torch.Generator().manual_seed(1))[: round(dead * width)]] = True
        w_enc[mask] *= 0.05
    threshold = quantile_for_l0((sample - b_dec) @ w_enc.T, l0)
    return StartingPoint(w_enc, dictionary.clone(), b_dec, threshold, l0, tokens, sample, mask)


class ReconstructionStats(NamedTuple):
    """What an SAE does with activations, as its own library computes it."""

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
    """Whether its TopK revives features that its own counters say are dead."""
    precision: ClassVar[str] = "highest"
    """The float32 matmul precision that it trains with by default: torch's, unless it sets another."""
    failed: str = ""
    """Why it is not asked for steps any more."""

    @abstractmethod
    def __init__(self, architecture: str, begin: StartingPoint):
        """An SAE of one of `architectures`, at `begin`."""

    def prepare(self) -> None:  # noqa: B027 — only those with dead features have something to do
        """Before every step, not timed: mark the dead features as dead once more."""

    @abstractmethod
    def step(self, x: Tensor) -> None:
        """Train on one batch [B, d]: forward, loss, backward, decoder norm, optimizer."""

    @abstractmethod
    def look(self, x: Tensor) -> ReconstructionStats:
        """Encode and decode x [n, d]."""

    def close(self) -> None:  # noqa: B027 — most have nothing to end
        """End what the contender started."""


def reconstruction_stats(x: Tensor, features: Tensor, x_hat: Tensor) -> ReconstructionStats:
    """features [n, M] or [n, k], x_hat [n, d]."""
    active = (features != 0).sum().item() / len(x)
    return ReconstructionStats(active, (x - x_hat).square().sum(1).mean().item())


def fill_(parameter: Any, value: Tensor | float) -> None:
    """Fill a library's parameter in place, in its own memory layout."""
    with torch.no_grad():
        parameter.copy_(value) if isinstance(value, Tensor) else parameter.fill_(value)
