"""Notes on a model's loss before SAEs are trained: whether it predicts the text, whether a site matters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jumpahead.errors import DataError
from jumpahead.lm.losses import next_token_nats
from jumpahead.lm.model import LM
from jumpahead.text.contexts import Contexts
from jumpahead.text.documents import documents
from jumpahead.text.source import Source
from jumpahead.text.tokenize import tokenize

SAMPLE_TOKENS = 1024
"""Approximate number of tokens of training text that the losses are measured on."""
UNTRAINED_SHARE = 0.9
"""Share of ln V from which a model is said to predict little: uniform guessing costs ln V."""
SMALL_SHIFT = 0.01
"""Nats per token. If zeroing a site costs less, the losses of all SAEs at the site are nearly equal."""


def loss_notes(lm: LM, source: Source, sites: Sequence[str]) -> list[str]:
    """Return sentences about the loss of a whole model on a little training text; empty if all is well.

    Says if the loss is near ln V, or if zeroing a site hardly moves it. Text that is too short gives no sentence: the
    run itself says so.
    """
    length = lm.context - (lm.bos_id is not None)
    held_out, limit = source.config.held_out, max(SAMPLE_TOKENS, length)
    try:
        contexts = tokenize(documents(source), lm, split="train", held_out=held_out, max_tokens=limit)
    except DataError:
        return []
    ids = torch.from_numpy(contexts.ids(0))[: max(1, SAMPLE_TOKENS // lm.context)]
    clean = _mean_nats(lm, contexts, ids, None)
    notes, guessing = [], math.log(lm.vocab_size)
    if clean >= UNTRAINED_SHARE * guessing:
        notes.append(
            f"the loss of '{lm.name}' on this text is {clean:.2f} nats, near ln V = {guessing:.2f}: it predicts "
            "little; check weights, tokenizer and text."
        )
    for site in sites:
        shift = _mean_nats(lm, contexts, ids, site) - clean
        if abs(shift) < SMALL_SHIFT:
            notes.append(
                f"zeroing {site} moves the loss by {shift:+.4f} nats: delta LM loss can hardly tell SAEs apart there."
            )
    return notes


def _mean_nats(lm: LM, contexts: Contexts, ids: Tensor, zeroed: str | None) -> float:
    """Return the mean cross-entropy of the first rows of group 0, with a site zeroed at the spliced positions.

    ids: int64 [b, t], the rows.
    """
    whole = contexts.position_ids(0)
    positions = None if whole is None else whole[: len(ids)]
    no_padding = torch.ones_like(ids)  # on the left
    if zeroed is None:
        logits = lm.logits(ids, positions, no_padding)
    else:
        mask = torch.from_numpy(contexts.trained_mask(0))[: len(ids)].to(lm.device)
        logits = lm.splice(ids, zeroed, torch.zeros_like, mask, positions, no_padding)
    scored = torch.from_numpy(contexts.scored_mask(0))[: len(ids), :-1].to(lm.device)
    return float(next_token_nats(logits, ids)[scored].double().mean())
