"""What `lm.dtype = "fast"` means on this machine: bfloat16 where that is faster and the same model, else float32.

    faster       `read` up to the study's last site runs at WORTH times float32's rate, or more
    the same     |CE(bfloat16) − CE(float32)| < LARGEST_SHIFT nats per token, on the same SAMPLE tokens of training text

It concerns activations alone: a study measures its SAEs in the float32 model (docs/decisions/0007). Timings differ from
process to process, so it is decided once, when a run begins, and the run keeps what was decided.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from jumpahead.lm.config import LMConfig
from jumpahead.lm.model import LM, nats
from jumpahead.text.config import TextConfig
from jumpahead.text.contexts import Contexts, tokenize
from jumpahead.text.documents import documents
from jumpahead.text.source import Source
from jumpahead.text.sources import source_of

EXACT, FAST = "float32", "bfloat16"
LARGEST_SHIFT = 1e-3
"""Nats per token. The standard error of a difference over SAMPLE tokens is 2e-4 to 4e-4 (docs/LOG.md)."""
SAMPLE = 8192
"""Tokens of training text, about."""
WORTH = 1.25
"""Below this nothing is rounded: timings of a busy machine differ by as much."""
ROUNDS = 3


class Precision(NamedTuple):
    """What was decided, and why. A number is there where it was needed to decide."""

    dtype: str
    """What activations are read in: `float32` or `bfloat16`."""
    products: dict[str, float]
    """Seconds of one matrix product in each dtype."""
    tokens_per_second: dict[str, float]
    """Of `read`, in each dtype."""
    loss: dict[str, float]
    """Nats per token, in each dtype."""
    tokens: int
    """Scored tokens behind `loss`."""

    def __str__(self) -> str:
        parts = []
        if self.tokens_per_second:
            exact, fast = (f"{self.tokens_per_second[dtype]:,.0f}" for dtype in (EXACT, FAST))
            parts.append(f"{fast} tokens/s in {FAST}, {exact} in {EXACT}")
        elif self.products:
            parts.append(f"products in {FAST} are not faster on this machine")
        if self.loss:
            parts.append(f"the loss moves by {self.shift:+.2g} nats ({self.tokens:,} tokens)")
        return f"{self.dtype} ({'; '.join(parts)})"

    @property
    def shift(self) -> float:
        """Nats per token by which bfloat16 moves the loss."""
        return self.loss[FAST] - self.loss[EXACT]


def decide(config: LMConfig, text: TextConfig | Source, sites: Sequence[str]) -> Precision:
    """Measures both, on this machine, now; stops measuring once it is clear that it will be float32."""
    exact = LM.load(config.model_copy(update={"dtype": EXACT}))
    products = {dtype: _product_seconds(exact.device, getattr(torch, dtype)) for dtype in (EXACT, FAST)}
    if products[FAST] >= products[EXACT]:
        return Precision(EXACT, products, {}, {}, 0)
    fast = LM.load(config.model_copy(update={"dtype": FAST}))
    chunk = exact.context - (exact.bos_id is not None)
    some = max(SAMPLE, chunk)
    source = text if isinstance(text, Source) else source_of(text)
    held_out = source.config.held_out
    contexts = tokenize(documents(source), exact, split="train", held_out=held_out, max_tokens=some)
    rates = _rates({EXACT: exact, FAST: fast}, contexts, sites)
    if rates[FAST] < WORTH * rates[EXACT]:
        return Precision(EXACT, products, rates, {}, 0)
    loss = {dtype: _loss(lm, contexts) for dtype, lm in {EXACT: exact, FAST: fast}.items()}
    tokens = int(contexts.scored_per_group.sum())
    found = Precision(FAST, products, rates, loss, tokens)
    return found if abs(found.shift) < LARGEST_SHIFT else found._replace(dtype=EXACT)


def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Best of a few: a CPU without bfloat16 arithmetic is told apart before a whole model runs in it."""
    x, w = (torch.ones(shape, device=device, dtype=dtype) for shape in ((512, 512), (512, 1024)))
    return min(_seconds(lambda: (x @ w)[0, 0].item()) for _ in range(1 + ROUNDS))


def _rates(lms: dict[str, LM], contexts: Contexts, sites: Sequence[str]) -> dict[str, float]:
    """Tokens per second of each, best of a few, in turn so that both see the same machine."""
    ids = torch.from_numpy(contexts.ids(0))
    best = dict.fromkeys(lms, float("inf"))
    for _ in range(1 + ROUNDS):
        for dtype, lm in lms.items():
            seconds = _seconds(lambda lm=lm: [x.sum().item() for x in lm.read(ids, sites).values()])
            best[dtype] = min(best[dtype], seconds)
    return {dtype: ids.numel() / seconds for dtype, seconds in best.items()}


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _loss(lm: LM, contexts: Contexts) -> float:
    """Nats per scored token."""
    total = 0.0
    for group in range(contexts.groups):
        ids = torch.from_numpy(contexts.ids(group))
        scored = torch.from_numpy(contexts.scored(group))[:, :-1].to(lm.device)
        total += float(nats(lm.logits(ids), ids)[scored].double().sum())
    return total / int(contexts.scored_per_group.sum())
