"""Dense SAE training, the common baseline: dense tensors, autograd, fused Adam over all parameters.

    forward    the architecture's `loss` on tensors of B×M entries
    backward   torch.autograd.grad
    update     remove the radial component of the decoder gradient, torch.optim.Adam(fused=True, betas=(β₁, β₂)),
               renormalise the rows of W_dec, clamp parameters to their domain

B tokens · d dimensions · M features. For the k largest entries of a token or of the batch, the architectures' own loss
sorts all entries to break ties deterministically. Here torch.topk selects them; a second variant selects each token's
k largest approximately.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from jumpahead.efficiency.cost_model import group_size
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.auxk import WithAuxK
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.parameters import Params
from jumpahead.sae.support import TopKOfBatch, TopKPerToken

DenseLoss = Callable[[Params, Tensor, StepInputs], Tensor]
TopKFunction = Callable[[Tensor, int], Tensor]
"""(pre-activations [B, M], k) → indices [B, k] of the features kept of each token."""

TARGET_RECALL = 0.95
"""Expected recall of approximate top-k: the default of JAX's approx_max_k."""


@final
class DenseTrainer:
    """An SAE in dense training."""

    def __init__(self, arch: Architecture, p: Params, trained: list[str], loss: DenseLoss, lr: float):
        self.arch, self.loss, self.trained = arch, loss, trained
        self.p = {name: tensor.detach().clone() for name, tensor in p.items()}
        for name in trained:
            self.p[name].requires_grad_()
        groups = [{"params": [self.p[name]], "lr": lr * arch.lr_multiplier(name)} for name in trained]
        recipe = arch.recipe
        self.optimizer = torch.optim.Adam(
            groups, betas=(recipe.beta1, recipe.beta2), eps=recipe.adam_epsilon, fused=True
        )

    def step(self, x: Tensor, inputs: StepInputs) -> None:
        """Train on one batch x [B, d]."""
        self.backward(self.forward(x, inputs))
        self.update()

    def forward(self, x: Tensor, inputs: StepInputs) -> Tensor:
        """Return the loss of one batch x [B, d]."""
        return self.loss(self.p, x, inputs)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of all trained parameters."""
        leaves = [self.p[name] for name in self.trained]
        for leaf, g in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
            leaf.grad = torch.zeros_like(leaf) if g is None else g

    @torch.no_grad()
    def update(self) -> None:
        """Update the parameters from their gradients."""
        w, unit_norm = self.p["W_dec"], self.arch.decoder_norm == "unit"
        if unit_norm and w.grad is not None:
            w.grad.addcmul_((w.grad * w).sum(1, keepdim=True), w, value=-1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if unit_norm:
            w /= w.norm(dim=1, keepdim=True)
        self.arch.constrain(self.p)


def dense_losses(arch: Architecture, p: Params, x: Tensor, inputs: StepInputs) -> dict[str, DenseLoss]:
    """Return the dense losses to measure by method: `dense`, and `approximate` if the k largest per token are kept.

    x [B, d]: a few tokens on which `topk_loss` must agree with the architecture's own `loss`.
    """
    selection = arch.selection(p, arch.derive(p), inputs, training=True)
    if not isinstance(arch, WithAuxK):
        return {"dense": arch.loss}
    by_topk = topk_loss(arch, top_k_indices)
    if not torch.allclose(by_topk(p, x, inputs), arch.loss(p, x, inputs), rtol=1e-4):
        return {"dense": arch.loss}
    if isinstance(selection, TopKOfBatch):
        return {"dense": by_topk}
    return {"dense": by_topk, "approximate": topk_loss(arch, approximate_top_k)}


def topk_loss(arch: WithAuxK, topk: TopKFunction) -> DenseLoss:
    """Return the loss of an SAE that keeps the largest pre-activations of each token or of the batch, with AuxK.

    topk: selects the k largest entries of a token, and the `k_dead` largest among its dead features.
    """

    def loss(p: Params, x: Tensor, inputs: StepInputs) -> Tensor:
        pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        selection = arch.selection(p, {}, inputs, training=True)
        if isinstance(selection, TopKOfBatch):
            f = top_of_batch(pre, selection.count(len(pre)))
        else:
            assert isinstance(selection, TopKPerToken)
            f = relu_at(pre, topk(pre, selection.k))
        total, error = arch.loss_and_error(p, x, f)
        if selection.dead is None:
            return total
        e = error.detach()
        of_dead = pre.masked_fill(~selection.dead, -torch.inf)
        rest = e - relu_at(of_dead, topk(of_dead, selection.k_dead)) @ p["W_dec"]
        return total + arch.error_weights(x, e)[-1] * rest.square().sum(1).mean()

    return loss


def relu_at(pre: Tensor, index: Tensor) -> Tensor:
    """Return the ReLU of the entries `index` [B, k] of each row of pre [B, M], zero elsewhere; [B, M]."""
    return torch.zeros_like(pre).scatter(-1, index, pre.gather(-1, index).relu())


def top_k_indices(pre: Tensor, k: int) -> Tensor:
    """Return the indices [B, k] of the k largest entries of each row of pre [B, M], unsorted."""
    return torch.topk(pre.detach(), min(k, pre.shape[-1]), sorted=False).indices


def top_of_batch(pre: Tensor, n: int) -> Tensor:
    """Return the ReLU of the n largest entries of pre [B, M], zero elsewhere; [B, M]."""
    flat = pre.reshape(1, -1)
    return relu_at(flat, top_k_indices(flat, n)).view_as(pre)


def approximate_top_k(pre: Tensor, k: int) -> Tensor:
    """Return the indices [B, k] of the k largest group maxima of each row of pre [B, M] (arXiv 2206.14286).

    Group g of G contains features g, g + G, g + 2G, …
    """
    width = pre.shape[-1]
    size = group_size(k, width, TARGET_RECALL)
    if size == 1:
        return top_k_indices(pre, k)
    table = pre.detach().view(len(pre), size, width // size)
    best = torch.topk(table.amax(1), k, sorted=False).indices
    member = table.gather(2, best[:, None, :].expand(-1, size, -1)).argmax(1)
    return member * (width // size) + best


def recall(pre: Tensor, k: int) -> float:
    """Return the share of the k largest positive entries of each row of pre [B, M] that `approximate_top_k` finds."""
    exact, found = (relu_at(pre, topk(pre, k)) > 0 for topk in (top_k_indices, approximate_top_k))
    return float((exact & found).sum() / exact.sum().clamp_min(1))
