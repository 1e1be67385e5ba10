"""Choose the dtype for `lm.dtype = "fast"`: bfloat16 if faster on this machine at nearly equal loss, else float32.

    faster             `LM.read` up to the study's last site is at least MIN_SPEEDUP times as fast as in float32
    nearly equal       |CE(bfloat16) − CE(float32)| < MAX_LOSS_SHIFT nats per token, on SAMPLE_TOKENS of training text

The choice affects only the reading of activations: a study evaluates SAEs in the float32 model (docs/decisions/0007).
Timings differ from process to process, so a run chooses once, when it begins, and stores the choice.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from jumpahead.lm.config import LMConfig
from jumpahead.lm.losses import next_token_nats
from jumpahead.lm.model import LM
from jumpahead.text.config import TextConfig
from jumpahead.text.contexts import Contexts
from jumpahead.text.documents import documents
from jumpahead.text.source import Source
from jumpahead.text.sources import source_of
from jumpahead.text.tokenize import tokenize

EXACT, FAST = "float32", "bfloat16"
MAX_LOSS_SHIFT = 1e-3
"""Nats per token. The standard error of a difference over SAMPLE_TOKENS is 2e-4 to 4e-4 (docs/LOG.md)."""
SAMPLE_TOKENS = 8192
"""Approximate number of tokens of training text in the loss measurement."""
MIN_SPEEDUP = 1.25
"""Minimum speedup of bfloat16. Timings on a busy machine vary by a similar factor."""
ROUNDS = 3
"""Repetitions of each timing after a warm-up; the fastest run counts."""


class DtypeChoice(NamedTuple):
    """The dtype chosen for reading activations, with the measurements behind the choice.

    A measurement that was not needed is empty or 0."""

    dtype: str
    """Dtype in which activations are read: `float32` or `bfloat16`."""
    product_seconds: dict[str, float]
    """Seconds of one matrix product, by dtype."""
    tokens_per_second: dict[str, float]
    """Tokens per second of `LM.read`, by dtype."""
    loss: dict[str, float]
    """Mean cross-entropy in nats per token, by dtype."""
    tokens: int
    """Number of scored tokens in `loss`."""

    def __str__(self) -> str:
        """Return one line with the chosen dtype and the reasons."""
        parts = []
        if self.tokens_per_second:
            exact, fast = (f"{self.tokens_per_second[dtype]:,.0f}" for dtype in (EXACT, FAST))
            parts.append(f"{fast} tokens/s in {FAST}, {exact} in {EXACT}")
        elif self.product_seconds:
            parts.append(f"products in {FAST} are not faster on this machine")
        if self.loss:
            parts.append(f"the loss moves by {self.loss_shift:+.2g} nats ({self.tokens:,} tokens)")
        return f"{self.dtype} ({'; '.join(parts)})"

    @property
    def loss_shift(self) -> float:
        """Return the loss in bfloat16 minus the loss in float32, in nats per token."""
        return self.loss[FAST] - self.loss[EXACT]


def choose_dtype(config: LMConfig, text: TextConfig | Source, sites: Sequence[str]) -> DtypeChoice:
    """Compare float32 and bfloat16 on this machine and return the choice; stops as soon as bfloat16 is ruled out."""
    exact = LM.load(config.model_copy(update={"dtype": EXACT}))
    product_seconds = {dtype: _product_seconds(exact.device, getattr(torch, dtype)) for dtype in (EXACT, FAST)}
    if product_seconds[FAST] >= product_seconds[EXACT]:
        return DtypeChoice(EXACT, product_seconds, {}, {}, 0)
    fast = LM.load(config.model_copy(update={"dtype": FAST}))
    chunk = exact.context - (exact.bos_id is not None)
    max_tokens = max(SAMPLE_TOKENS, chunk)
    source = text if isinstance(text, Source) else source_of(text)
    held_out = source.config.held_out
    contexts = tokenize(documents(source), exact, split="train", held_out=held_out, max_tokens=max_tokens)
    rates = _tokens_per_second({EXACT: exact, FAST: fast}, contexts, sites)
    if rates[FAST] < MIN_SPEEDUP * rates[EXACT]:
        return DtypeChoice(EXACT, product_seconds, rates, {}, 0)
    loss = {dtype: _mean_loss(lm, contexts) for dtype, lm in {EXACT: exact, FAST: fast}.items()}
    tokens = int(contexts.scored_per_group.sum())
    choice = DtypeChoice(FAST, product_seconds, rates, loss, tokens)
    return choice if abs(choice.loss_shift) < MAX_LOSS_SHIFT else choice._replace(dtype=EXACT)


def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds of the fastest of a few matrix products, [512, 512] · [512, 1024].

    The measurement rules out CPUs without bfloat16 arithmetic before a whole model runs in bfloat16.
    """
    x, w = (torch.ones(shape, device=device, dtype=dtype) for shape in ((512, 512), (512, 1024)))
    return min(_time_call(lambda: (x @ w)[0, 0].item()) for _ in range(1 + ROUNDS))


def _tokens_per_second(lms: dict[str, LM], contexts: Contexts, sites: Sequence[str]) -> dict[str, float]:
    """Return the highest tokens per second of `LM.read`, by dtype; models alternate so that both see equal load."""
    ids = torch.from_numpy(contexts.ids(0))
    no_padding = torch.ones_like(ids)  # on the left
    best = dict.fromkeys(lms, float("inf"))
    for _ in range(1 + ROUNDS):
        for dtype, lm in lms.items():
            read = functools.partial(lm.read, ids, sites, attention_mask=no_padding)
            seconds = _time_call(lambda read=read: [x.sum().item() for x in read().values()])
            best[dtype] = min(best[dtype], seconds)
    return {dtype: ids.numel() / seconds for dtype, seconds in best.items()}


def _time_call(function: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call of `function`."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _mean_loss(lm: LM, contexts: Contexts) -> float:
    """Return the mean cross-entropy of the LM over the scored tokens, in nats per token."""
    total = 0.0
    for group in range(contexts.num_groups):
        ids = torch.from_numpy(contexts.ids(group))
        scored = torch.from_numpy(contexts.scored_mask(group))[:, :-1].to(lm.device)
        total += float(next_token_nats(lm.logits(ids, attention_mask=torch.ones_like(ids)), ids)[scored].double().sum())
    return total / int(contexts.scored_per_group.sum())
