"""Diagnostics of training, computed from the entries of one step.

    window            |{(i, j): lower_j < π_ij < upper_j}| / (B·M): the entries that train θ in this batch
    window_features   |{j: some token of the batch is in j's window}| / M
    theta_05 … _95    quantiles of θ over features, in the unit E‖x‖² = 1
    theta_in_sqrt_lambda   median θ/√λ, if an entry costs λ: 1 to 1.5 at convergence, as E[2θ·d·r | π = θ] = λ
                      (arXiv 2407.14435, section 4). For a JumpReLU with a controlled λ it is always 1/√c, with the
                      controller's penalty scale c
    threshold_travel  how far Adam can still move log θ, in nats: rate·Σ lr of the remaining steps (β₁ = 0: a step moves
                      a parameter by at most about lr); if θ itself is trained log(1 + rate·Σ lr / median θ)
    sparsity_gradient_ratio   ‖Σ constant‖/‖Σ slope·projection‖, norms over features: the gradient of the sparsity term
                      relative to that of the reconstruction, in the vectors that the sparsity term acts on
    above_1pct, above_10pct    share of features that fire on more than 1 % (10 %) of the batch
    dead              share of features that have not fired for the recipe's `dead_after_tokens` tokens
    lambda            λ in force, warm-up included

B tokens · M features. Names without a meaning for an architecture are absent. `jumpahead.diagnostics` judges these
numbers. All sums are in float64; no state is changed.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from jumpahead.engine.interface import State
from jumpahead.engine.state import make_step_inputs
from jumpahead.sae.gradients import Affine, Gradients
from jumpahead.sae.support import Entries

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of θ over features."""


@final
class StepDiagnostics:
    """A `StepObserver`: pass it to one `train_step`, then read its `summary`."""

    def __init__(self, state: State, tokens: int, warmup: float):
        """Prepare for the next step of this state. tokens: B; warmup: the share of a fixed λ in force."""
        self._arch, self._tokens, self._width = state.arch, tokens, len(state.params["W_enc"])
        self._device = state.last_touched.device
        self._sparsity_coefficient = float(make_step_inputs(state, warmup).sparsity_coefficient)
        found = state.arch.thresholds(state.arch.derive(state.params))
        self._window_edges = None if found is None else (found.lower, found.upper)
        self.reset()

    def reset(self) -> None:
        """Discard what was observed: the step is replayed."""
        self._window = self._zeros()
        self._fired = self._zeros()
        self._gradients: dict[str, tuple[Tensor, Tensor]] = {}
        """For each vector that the sparsity term acts on: its gradient [M] from the reconstruction, and from that
        term."""

    def __call__(
        self, entries: Entries, values: tuple[Tensor, ...], gradients: Gradients, projections: tuple[Tensor, ...]
    ) -> None:
        """Add the entries of a support or of a dense block; all entries of a feature come in one call."""
        self._add_per_feature(self._fired, entries, self._arch.features(values) > 0)
        if self._window_edges is not None:
            lower, upper = (entries.per_feature(edge) for edge in self._window_edges)
            self._add_per_feature(self._window, entries, (entries.pre > lower) & (entries.pre < upper))
        for name, gradient in gradients.vectors.items():
            if gradient.constant is not None:
                reconstruction, sparsity = self._gradients.setdefault(name, (self._zeros(), self._zeros()))
                without_constant = Affine(gradient.slopes, torch.zeros_like(gradient.constant))
                self._add_per_feature(reconstruction, entries, without_constant.evaluate(projections))
                self._add_per_feature(sparsity, entries, gradient.constant)

    def summary(self, state: State, remaining_learning_rate: float) -> dict[str, float]:
        """Return the diagnostics by name, after the step.

        remaining_learning_rate: Σ of Adam's learning rate over the steps that follow.
        """
        frequency = self._fired / self._tokens
        found = {
            "dead": _share(state.tokens_since_fired >= state.arch.recipe.dead_after_tokens),
            "above_1pct": _share(frequency > 0.01),
            "above_10pct": _share(frequency > 0.1),
        }
        if self._sparsity_coefficient > 0:
            found["lambda"] = self._sparsity_coefficient
        reconstruction, sparsity = (
            math.sqrt(sum(pair[i].square().sum().item() for pair in self._gradients.values())) for i in range(2)
        )
        if reconstruction > 0 and sparsity > 0:
            found["sparsity_gradient_ratio"] = sparsity / reconstruction
        return found | self._threshold_summary(state, remaining_learning_rate)

    def _threshold_summary(self, state: State, remaining_learning_rate: float) -> dict[str, float]:
        """Return the diagnostics of learned thresholds; none for architectures without them."""
        arch = state.arch
        thresholds = arch.thresholds(arch.derive(state.params))
        if thresholds is None:
            return {}
        theta = thresholds.theta.double()
        quantiles = torch.quantile(theta, theta.new_tensor(QUANTILES)).tolist()
        found = {f"theta_{100 * q:02.0f}": value for q, value in zip(QUANTILES, quantiles, strict=True)}
        median, travel = found["theta_50"], arch.trained_vectors[thresholds.parameter] * remaining_learning_rate
        if self._sparsity_coefficient > 0 and thresholds.in_sqrt_lambda:
            found["theta_in_sqrt_lambda"] = median / math.sqrt(self._sparsity_coefficient)
        return found | {
            "window": self._window.sum().item() / (self._tokens * self._width),
            "window_features": _share(self._window > 0),
            "threshold_travel": travel if thresholds.is_log else math.log1p(travel / median),
        }

    def _zeros(self) -> Tensor:
        """Return zeros, [M] float64."""
        return torch.zeros(self._width, dtype=torch.float64, device=self._device)

    def _add_per_feature(self, total: Tensor, entries: Entries, values: Tensor) -> None:
        """Add the values at the entries of each feature to its element of total [M], in place."""
        if entries.pre.dim() == 2:
            total[entries.feature.long()] += values.sum(1, dtype=torch.float64)
        else:
            total += torch.bincount(entries.feature.long(), values.double(), minlength=self._width)


def _share(mask: Tensor) -> float:
    """Return the share of elements that are set."""
    return mask.double().mean().item()
