"""The dense recipe, which is what the field does: dense tensors, autograd, fused Adam over all parameters.

    forward    the architecture's `loss` on tensors of B×M entries
    backward   torch.autograd.grad
    update     the decoder gradient without its radial component, torch.optim.Adam(fused=True, betas=(0, β₂)), rows of
               W_dec renormalised, parameters brought back into their domain

Shapes as in `sae/base.py`. Where an architecture keeps the k largest, its oracle sorts whole rows so that ties are
decided, and where it keeps those of the batch, all of them; here the field's torch.topk does both, and, of each token,
as a recipe of its own, an approximate top-k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from jumpahead.efficiency.counts import members
from jumpahead.sae.auxk import WithAuxK
from jumpahead.sae.base import Architecture, Knobs, Largest, LargestOfBatch, Params

Loss = Callable[[Params, Tensor, Knobs], Tensor]
Pick = Callable[[Tensor, int], Tensor]
"""π [B, M], k → [B, k] the features kept of each token."""

RECALL = 0.95
"""What approximate top-k aims at: the default of JAX's approx_max_k."""


@final
class Dense:
    """An SAE in training by the dense recipe."""

    def __init__(self, arch: Architecture, p: Params, trained: list[str], loss: Loss, lr: float):
        self.arch, self.loss, self.trained = arch, loss, trained
        self.p = {name: tensor.detach().clone() for name, tensor in p.items()}
        for name in trained:
            self.p[name].requires_grad_()
        groups = [{"params": [self.p[name]], "lr": lr * arch.trained.get(name, 1.0)} for name in trained]
        recipe = arch.recipe
        self.optimizer = torch.optim.Adam(groups, betas=(0.0, recipe.beta2), eps=recipe.adam_epsilon, fused=True)

    def step(self, x: Tensor, knobs: Knobs) -> None:
        """Train on one batch x [B, d]."""
        self.backward(self.forward(x, knobs))
        self.update()

    def forward(self, x: Tensor, knobs: Knobs) -> Tensor:
        """The loss of one batch x [B, d]."""
        return self.loss(self.p, x, knobs)

    def backward(self, loss: Tensor) -> None:
        """Gradients of all trained parameters."""
        leaves = [self.p[name] for name in self.trained]
        for leaf, g in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
            leaf.grad = torch.zeros_like(leaf) if g is None else g

    @torch.no_grad()
    def update(self) -> None:
        """Everything after the gradients."""
        w, is_unit = self.p["W_dec"], self.arch.decoder_norm == "unit"
        if is_unit and w.grad is not None:
            w.grad.addcmul_((w.grad * w).sum(1, keepdim=True), w, value=-1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if is_unit:
            w /= w.norm(dim=1, keepdim=True)
        self.arch.constrain(self.p)


def losses(arch: Architecture, p: Params, x: Tensor, knobs: Knobs) -> dict[str, Loss]:
    """The dense losses that are measured, by method: `dense`, and `approximate` where the k largest of each token are.

    x [B, d]: a few tokens, on which `largest_loss` has to agree with the architecture's own `loss`.
    """
    selection = arch.selection(p, arch.derive(p), knobs, training=True)
    if not isinstance(arch, WithAuxK):
        return {"dense": arch.loss}
    field = largest_loss(arch, top_k)
    if not torch.allclose(field(p, x, knobs), arch.loss(p, x, knobs), rtol=1e-4):
        return {"dense": arch.loss}
    if isinstance(selection, LargestOfBatch):
        return {"dense": field}
    return {"dense": field, "approximate": largest_loss(arch, approximate_top_k)}


def largest_loss(arch: WithAuxK, pick: Pick) -> Loss:
    """The loss of an SAE that keeps the largest π of each token or of the batch, and `k_dead` dead ones for the
    residual; those of a token are chosen by `pick`."""

    def loss(p: Params, x: Tensor, knobs: Knobs) -> Tensor:
        pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        selection = arch.selection(p, {}, knobs, training=True)
        if isinstance(selection, LargestOfBatch):
            f = top_of_batch(pre, selection.count(len(pre)))
        else:
            assert isinstance(selection, Largest)
            f = kept(pre, pick(pre, selection.k))
        total, error = arch.errors(p, x, f)
        if selection.dead is None:
            return total
        e = error.detach()
        of_dead = pre.masked_fill(~selection.dead, -torch.inf)
        rest = e - kept(of_dead, pick(of_dead, selection.k_dead)) @ p["W_dec"]
        return total + arch.weights(x, e)[-1] * rest.square().sum(1).mean()

    return loss


def kept(pre: Tensor, index: Tensor) -> Tensor:
    """ReLU of the entries `index` [B, k] of each row of pre [B, M], zero elsewhere."""
    return torch.zeros_like(pre).scatter(-1, index, pre.gather(-1, index).relu())


def top_k(pre: Tensor, k: int) -> Tensor:
    """The k largest of each row of pre [B, M], in no order."""
    return torch.topk(pre.detach(), min(k, pre.shape[-1]), sorted=False).indices


def top_of_batch(pre: Tensor, n: int) -> Tensor:
    """ReLU of the n largest entries of pre [B, M], zero elsewhere."""
    flat = pre.reshape(1, -1)
    return kept(flat, top_k(flat, n)).view_as(pre)


def approximate_top_k(pre: Tensor, k: int) -> Tensor:
    """The k largest of each row among the largest of each group, as on TPUs (arXiv 2206.14286).

    Group g of G holds features g, g + G, g + 2G, …
    """
    width = pre.shape[-1]
    size = members(k, width, RECALL)
    if size == 1:
        return top_k(pre, k)
    table = pre.detach().view(len(pre), size, width // size)
    best = torch.topk(table.amax(1), k, sorted=False).indices
    member = table.gather(2, best[:, None, :].expand(-1, size, -1)).argmax(1)
    return member * (width // size) + best


def recall(pre: Tensor, k: int) -> float:
    """Share of the k largest positive entries of each row of pre [B, M] that `approximate_top_k` keeps."""
    exact, found = (kept(pre, pick(pre, k)) > 0 for pick in (top_k, approximate_top_k))
    return float((exact & found).sum() / exact.sum().clamp_min(1))
