"""TopK SAE with AuxK — Scaling and Evaluating Sparse Autoencoders, https://arxiv.org/abs/2406.04093

    π    = W_enc·(x − b_dec) + b_enc
    f    = ReLU(TopK_k(π))                          of equal π the lower feature index is kept
    x̂    = W_decᵀ f + b_dec                         rows of W_dec have norm one
    e    = x − x̂, as a constant
    ê    = W_decᵀ ReLU(TopK_kaux(π among dead features))
    L    = ‖x − x̂‖² + α·(Var x/Var e)·‖e − ê‖²      means over tokens; Var x = mean ‖x − x̄‖² of the batch, a constant

A feature is dead when it has not fired for `dead_after_tokens` tokens. The support is the kept entries with π > 0: the
k of x̂ and the kaux of ê; an entry can belong to both.

Departures from the paper: the whole loss is theirs (both errors normalised by their variance) multiplied by Var x, so
that its unit is the other architectures'; b_dec starts at the mean activation, not at the geometric median; the encoder
is not rescaled at the start; no gradient clipping, no weight averaging. k_aux = d/2, α = 1/32 as published.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jumpahead.sae.auxk import WithAuxK, topk_relu
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.parameters import Params, initial_parameters
from jumpahead.sae.support import TopKPerToken


class TopK(WithAuxK):
    """The TopK SAE; equations in the module's docstring."""

    name, title = "topk", "TopK"
    requires_integer_l0 = True
    encodes_by_setting = True
    vectors = ("b_enc",)

    def k(self, step_inputs: StepInputs) -> int:
        """Return k, the number of features selected per token."""
        return max(1, round(self.requested_l0(step_inputs)))

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        return initial_parameters(d, width, generator, sample, self.recipe)[0]

    def selection(self, params: Params, derived: Params, step_inputs: StepInputs, *, training: bool) -> TopKPerToken:
        if not training or step_inputs.dead is None:
            return TopKPerToken(self.k(step_inputs))
        return TopKPerToken(self.k(step_inputs), step_inputs.dead, self.k_dead(params))

    def activate(self, params: Params, pre: Tensor) -> Tensor:
        return topk_relu(pre, self.k(StepInputs()))

    def activate_batch(self, params: Params, pre: Tensor, step_inputs: StepInputs) -> Tensor:
        return topk_relu(pre, self.k(step_inputs))


ARCHITECTURE = TopK
