"""Logits of the LM with a reconstruction spliced in, and their cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from jumpahead.lm.model import LM, ResumePoint

LOGITS_AT_ONCE = 2**19
"""Logits whose softmax is computed together: 2 MiB in float32."""

LOGIT_BYTES = 16
"""Bytes per scored token and vocabulary entry: clean and spliced logits, and temporaries."""


def spliced_logits(lm: LM, resume: ResumePoint, spliced: Tensor, scored: Tensor, x_hat: Tensor | None) -> Tensor:
    """Return the logits [scored, V] with x_hat [rows, d] at the spliced positions; of the clean LM if it is None."""
    activation = None
    if x_hat is not None:
        activation = resume.activation.clone()
        activation[spliced] = x_hat.to(activation)
    return lm.run_from_site(resume, activation, scored)


def scores(logits: Tensor, target: Tensor, p: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return per row, float32 [n] each, the cross-entropy of target [n] in nats, and Σ p·log q (empty without p).

    logits [n, V], of which q is the softmax; p [n, V]: probabilities. A few rows at a time stay in the cache, which
    takes a quarter of the time of all at once.
    """
    found = torch.empty(2, len(logits), device=logits.device)
    target = target.to(logits.device)
    size = max(1, LOGITS_AT_ONCE // logits.shape[1])
    for start in range(0, len(logits), size):
        some = slice(start, start + size)
        log_q = torch.log_softmax(logits[some].float(), dim=-1)
        found[0, some] = -log_q.gather(1, target[some, None])[:, 0]
        if p is not None:
            found[1, some] = log_q.mul_(p[some]).sum(1)
    nats, cross = found.cpu()
    return nats, cross if p is not None else torch.empty(0)
