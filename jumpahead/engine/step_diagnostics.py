"""What one training step says about training's health, read off the entries that the step has at hand.

    window            |{(i, j): lower_j < π_ij < upper_j}| / (B·M)        who trains θ in this batch
    window_features   |{j: some token of the batch is in j's window}| / M
    theta_05 … _95    quantiles of θ over features, in the unit E‖x‖² = 1
    theta_in_sqrt_lambda   median θ/√λ: 1 to 1.5 at convergence, as E[2θ·d·r | π = θ] = λ (arXiv 2407.14435, section 4),
                      where an entry costs λ;
                      where a JumpReLU's λ is controlled it is 1/√c of the controller's price c at any time
    travel            how far Adam can still move log θ, in nats: rate·Σ lr of the steps left (β₁ = 0: a step moves a
                      parameter by at most about lr); for a trained θ log(1 + rate·Σ lr / median θ)
    pressure          ‖Σ constant‖/‖Σ slope·projection‖, norms over features: the sparsity term's share of the gradient
                      against the reconstruction's, in the vectors that the sparsity term acts on
    above_1pct, above_10pct    share of features that fire on more than 1 % (10 %) of the batch
    dead              share of features silent for the recipe's `dead_after` tokens
    lambda            λ in force, warm-up included

B tokens · M features. Names without a meaning for an architecture are absent. `jumpahead.diagnostics` says what is made of
them. Nothing here changes a state: sums of what a step has computed anyway, in float64.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from jumpahead.engine.step import State, knobs_of
from jumpahead.sae.base import Affine, Entries, Gradients

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@final
class Watch:
    """Looks on while `step` does its work: pass it to one step, then ask for `health`."""

    def __init__(self, state: State, tokens: int, warmup: float):
        """Before the step: `tokens` is its batch, `warmup` its share of a fixed λ."""
        self._arch, self._tokens, self._width = state.arch, tokens, len(state.p["W_enc"])
        self._device = state.last.device
        self._sparsity = float(knobs_of(state, warmup).sparsity)
        found = state.arch.thresholds(state.arch.derive(state.p))
        self._edges = None if found is None else (found.lower, found.upper)
        self.reset()

    def reset(self) -> None:
        """Forget what was seen: the step is done again."""
        self._window = self._zeros()
        self._fired = self._zeros()
        self._terms: dict[str, tuple[Tensor, Tensor]] = {}
        """For each vector that the sparsity term acts on: its gradient [M] from reconstruction, and from that term."""

    def __call__(
        self, entries: Entries, values: tuple[Tensor, ...], gradients: Gradients, projections: tuple[Tensor, ...]
    ) -> None:
        """Entries of a support, or of a block; every feature's are in one call."""
        self._add(self._fired, entries, self._arch.features(values) > 0)
        if self._edges is not None:
            lower, upper = (entries.at(edge) for edge in self._edges)
            self._add(self._window, entries, (entries.pre > lower) & (entries.pre < upper))
        for name, gradient in gradients.vectors.items():
            if gradient.constant is not None:
                learned, priced = self._terms.setdefault(name, (self._zeros(), self._zeros()))
                reconstruction = Affine(gradient.slopes, torch.zeros_like(gradient.constant))
                self._add(learned, entries, reconstruction.at(projections))
                self._add(priced, entries, gradient.constant)

    def health(self, state: State, rate_left: float) -> dict[str, float]:
        """After the step. rate_left: Σ of Adam's learning rate over the steps to come."""
        firing = self._fired / self._tokens
        found = {
            "dead": _share(state.silent >= state.arch.recipe.dead_after),
            "above_1pct": _share(firing > 0.01),
            "above_10pct": _share(firing > 0.1),
        }
        if self._sparsity > 0:
            found["lambda"] = self._sparsity
        learned, priced = (
            math.sqrt(sum(pair[i].square().sum().item() for pair in self._terms.values())) for i in range(2)
        )
        if learned > 0 and priced > 0:
            found["pressure"] = priced / learned
        return found | self._of_thresholds(state, rate_left)

    def _of_thresholds(self, state: State, rate_left: float) -> dict[str, float]:
        arch = state.arch
        now = arch.thresholds(arch.derive(state.p))
        if now is None:
            return {}
        theta = now.theta.double()
        quantiles = torch.quantile(theta, theta.new_tensor(QUANTILES)).tolist()
        found = {f"theta_{100 * q:02.0f}": value for q, value in zip(QUANTILES, quantiles, strict=True)}
        median, far = found["theta_50"], arch.trained[now.trained] * rate_left
        if self._sparsity > 0 and now.in_sqrt_lambda:
            found["theta_in_sqrt_lambda"] = median / math.sqrt(self._sparsity)
        return found | {
            "window": self._window.sum().item() / (self._tokens * self._width),
            "window_features": _share(self._window > 0),
            "travel": far if now.is_log else math.log1p(far / median),
        }

    def _zeros(self) -> Tensor:
        return torch.zeros(self._width, dtype=torch.float64, device=self._device)

    def _add(self, total: Tensor, entries: Entries, what: Tensor) -> None:
        """Add `what` at each entry to its feature's total."""
        if entries.pre.dim() == 2:
            total[entries.feature.long()] += what.sum(1, dtype=torch.float64)
        else:
            total += torch.bincount(entries.feature.long(), what.double(), minlength=self._width)


def _share(which: Tensor) -> float:
    return which.double().mean().item()
