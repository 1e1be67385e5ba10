"""Logits of the LM with a reconstruction spliced in, and their cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from jumpahead.lm.model import LM, ResumePoint

LOGITS_AT_ONCE = 2**19
"""Number of logits whose softmax is computed together: 2 MiB in float32."""

LOGIT_BYTES = 16
"""Bytes of GPU memory per scored token and vocabulary entry: clean and spliced logits, and temporaries."""


def logits_with_splice(lm: LM, resume: ResumePoint, spliced: Tensor, scored: Tensor, x_hat: Tensor | None) -> Tensor:
    """Return the logits [scored, V] of the LM with x_hat [rows, d] as its activations at the spliced positions.

    If x_hat is None, return the logits of the unmodified LM. spliced, scored: bool [b, t].
    """
    activation = None
    if x_hat is not None:
        activation = resume.activation.clone()
        activation[spliced] = x_hat.to(activation)
    return lm.run_from_site(resume, activation, scored)


def cross_entropies(logits: Tensor, target: Tensor, p: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return per row the cross-entropy of target [n] in nats, and Σ p·log q (empty if p is None): float32 [n] each.

    q is the softmax of logits [n, V]; p [n, V]: probabilities. Rows are processed in slices that fit in the CPU cache,
    which takes a quarter of the time.
    """
    sums = torch.empty(2, len(logits), device=logits.device)
    target = target.to(logits.device)
    size = max(1, LOGITS_AT_ONCE // logits.shape[1])
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        log_q = torch.log_softmax(logits[rows].float(), dim=-1)
        sums[0, rows] = -log_q.gather(1, target[rows, None])[:, 0]
        if p is not None:
            sums[1, rows] = log_q.mul_(p[rows]).sum(1)
    nats, expected_log_q = sums.cpu()
    return nats, expected_log_q if p is not None else torch.empty(0)
