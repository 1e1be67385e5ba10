"""Step 1: the selected entries, from the encoder product.

The encoder product is computed by the vendor's library, in bfloat16 if x is float32. It only screens: the
pre-activation π of every entry that may be selected is recomputed canonically in float64, and those values decide.

B tokens · d dimensions · M features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jumpahead.engine.canonical import topk_per_token
from jumpahead.engine.error_bounds import BF16_OUTPUT_ERROR, bias_error_bound
from jumpahead.engine.interface import CentredInput, EncoderWeights
from jumpahead.engine.kernels.base import cutoffs_above, encoder_error_slope
from jumpahead.engine.kernels.triton import screen
from jumpahead.engine.kernels.triton.entries import BufferedEntries, keep_entries
from jumpahead.engine.kernels.triton.launch import as_int16, ceil_div, next_power_of_two
from jumpahead.engine.supports import PADDING
from jumpahead.sae.support import DEAD, MAIN, TopKOfBatch, TopKPerToken

BLOCK_ENTRIES = 2**24
"""Entries of one block of the encoder product: 32 MiB in bfloat16, which fit into the L2 cache of a large GPU."""
MAX_STORED_ENTRIES = 2**29
"""Entries of the product that are stored until each token's k-th largest is bounded: 1 GiB in bfloat16."""
MAX_TILE = 1024
"""Upper bound on the tokens that a screening program reads at a time."""
MARKED_FEATURES = 4
"""Features per screening program."""
MIN_GROUPS_PER_K = 4
"""Lower bound on the groups of features per selected feature, for the bound of the k-th largest."""
BISECTIONS = 16


class SelectedEntries(NamedTuple):
    """The selected entries, and what the buffers needed."""

    entries: BufferedEntries
    part: Tensor | None
    """[capacity] uint8 bits MAIN and DEAD; None if all entries are MAIN."""
    needed: Tensor
    """[1] int64: the capacity that all candidates need; candidates beyond the capacity are missing."""
    candidate_pre: Tensor
    """[capacity] π of all candidates."""


def select_above(
    x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, lower: Tensor, capacity: int
) -> SelectedEntries:
    """Select every entry with π > lower. lower [M]."""
    cutoff, error_slope = cutoffs_above(x, encoder, b_enc, lower)
    tokens = len(x.x)
    bitmap, tile = _new_bitmap(len(lower), tokens, lower.device)
    for start, block in product_blocks(x, encoder):
        screen.mark_above[(ceil_div(len(block), MARKED_FEATURES),)](
            block, cutoff[start:], error_slope[start:], x.norms, bitmap[start:], len(block), tokens, bitmap.shape[1],
            FEATURES=MARKED_FEATURES, TILE=tile,
        )  # fmt: skip
    candidates, needed = _marked_entries(bitmap, capacity, x, encoder, b_enc)
    entries, _ = keep_entries(candidates, candidates.pre > lower[candidates.feature])
    return SelectedEntries(entries, None, needed, candidates.pre)


def select_topk(
    x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, selection: TopKPerToken | TopKOfBatch, capacity: int,
    minimum: Tensor | None = None,
) -> SelectedEntries:  # fmt: skip
    """Select the largest positive π of each token or of the batch, and those among the dead features of each token.

    minimum: 0-d; entries below it cannot be in the main part. By default a lower bound of each token's k-th largest.
    """
    tokens = len(x.x)
    dead = selection.dead.to(torch.uint8) if selection.dead is not None else b_enc.new_empty(0, dtype=torch.uint8)
    bitmap = _mark_topk(x, encoder, b_enc, selection, dead, minimum)
    candidates, needed = _marked_entries(bitmap, capacity, x, encoder, b_enc)
    if isinstance(selection, TopKPerToken):
        main = _topk_among(candidates, candidates.is_used(), selection.k, tokens)
    else:
        best = torch.sort(candidates.pre, descending=True, stable=True).indices[: selection.count(tokens)]
        main = torch.zeros_like(candidates.pre, dtype=torch.bool).index_fill_(0, best, True) & (candidates.pre > 0)
    if selection.dead is None:
        return SelectedEntries(*keep_entries(candidates, main), needed, candidates.pre)
    is_dead = candidates.is_used() & (dead[candidates.feature] != 0)
    auxiliary = _topk_among(candidates, is_dead, selection.k_dead, tokens)
    part = MAIN * main.to(torch.uint8) + DEAD * auxiliary.to(torch.uint8)
    return SelectedEntries(*keep_entries(candidates, main | auxiliary, part), needed, candidates.pre)


def _topk_among(candidates: BufferedEntries, among: Tensor, k: int, tokens: int) -> Tensor:
    """Return which candidates are the k largest positive ones of their token among `among`, bool [capacity]."""
    return topk_per_token(torch.where(among, candidates.token, tokens), candidates.pre, k, tokens) & among


def _mark_topk(
    x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, selection: TopKPerToken | TopKOfBatch, dead: Tensor,
    minimum: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return a bitmap of the entries that may be selected.

    Tokens are processed in parts small enough to store the whole product while the minimums are computed.
    """
    tokens, width, has_dead = len(x.x), len(b_enc), selection.dead is not None
    output_rounding = 0.0 if encoder.bf16 is None else BF16_OUTPUT_ERROR
    bounds = (b_enc, bias_error_bound(b_enc), encoder_error_slope(x, encoder))
    bitmap, tile = _new_bitmap(width, tokens, b_enc.device)
    searches = [(selection.k, False)] if isinstance(selection, TopKPerToken) else []
    searches += [(selection.k_dead, True)] if has_dead else []
    part_tokens = max(MAX_TILE, MAX_STORED_ENTRIES // max(1, width) // MAX_TILE * MAX_TILE)
    dtype = torch.bfloat16 if encoder.bf16 is not None and x.bf16 is not None else x.x.dtype
    stored = torch.empty(width * min(part_tokens, tokens) if searches else 0, dtype=dtype, device=b_enc.device)
    for first in range(0, tokens, part_tokens):
        part = x.row_range(first, part_tokens)
        n = len(part.x)
        minimums = [] if minimum is None else [minimum.repeat(min(part_tokens, tokens - first))]
        blocks = product_blocks(part, encoder)
        if searches:
            product = stored[: width * n].view(width, n)
            for _ in product_blocks(part, encoder, product):
                pass
            blocks = [(0, as_int16(product))]
            minimums += [
                kth_largest_minimums(as_int16(product), k, dead if of_dead else None, (output_rounding, *bounds),
                                     part.norms)
                for k, of_dead in searches
            ]  # fmt: skip
        for start, block in blocks:
            screen.mark_topk[(ceil_div(len(block), MARKED_FEATURES),)](
                block, dead[start:], output_rounding, *[bound[start:] for bound in bounds], part.norms, minimums[0],
                minimums[-1], bitmap[start:, first // 32 :], len(block), n, bitmap.shape[1],
                DEAD=has_dead, FEATURES=MARKED_FEATURES, TILE=tile,
            )  # fmt: skip
    return bitmap


def product_blocks(x: CentredInput, encoder: EncoderWeights, out: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield (first feature, [features, B]) blocks of the product W_enc·xᵀ; bfloat16 is viewed as int16.

    out [M, B]: receives the product.
    """
    width, tokens = len(encoder.w_enc), len(x.x)
    size = max(64, BLOCK_ENTRIES // max(1, tokens) // 64 * 64)
    rows, columns = (encoder.w_enc, x.x.T) if encoder.bf16 is None or x.bf16 is None else (encoder.bf16, x.bf16.T)
    with full_precision():
        for start in range(0, width, size):
            block = None if out is None else out[start : start + size]
            yield start, as_int16(torch.mm(rows[start : start + size], columns, out=block))


def _new_bitmap(width: int, tokens: int, device: torch.device) -> tuple[Tensor, int]:
    """Return an uninitialised bitmap, [M, at least B / 32] int32, and the tokens per tile of the screening kernels."""
    tile = max(32, min(MAX_TILE, next_power_of_two(tokens)))
    return torch.empty(width, ceil_div(tokens, tile) * tile // 32, dtype=torch.int32, device=device), tile


def _marked_entries(
    bitmap: Tensor, capacity: int, x: CentredInput, encoder: EncoderWeights, b_enc: Tensor
) -> tuple[BufferedEntries, Tensor]:
    """Return the marked entries, at most `capacity`, with their canonical π; and the number of marks, [1] int64."""
    (width, stride), device = bitmap.shape, bitmap.device
    counts = torch.zeros(width + 1, dtype=torch.int64, device=device)
    options = {"FEATURES": 8, "TILE": min(128, next_power_of_two(stride))}
    screen.count_marks[(ceil_div(width, 8),)](bitmap, counts[1:], width, stride, **options)
    colptr = counts.cumsum(0)
    token, feature = (torch.zeros(capacity, dtype=torch.int32, device=device) for _ in range(2))
    screen.write_marks[(ceil_div(width, 8),)](bitmap, colptr, token, feature, width, stride, capacity, **options)
    pre = torch.full((capacity,), PADDING, dtype=x.x.dtype, device=device)
    entries = BufferedEntries(colptr.clamp_max(capacity), token, feature, pre)
    write_canonical(x.x, encoder.w_enc, b_enc, token, feature, entries.num_entries, pre)
    return entries, colptr[-1:].clone()


def write_canonical(
    x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor, count: Tensor, pre: Tensor
) -> None:
    """Write the canonical π of the first `count` ([1] int64) entries to `pre`."""
    if len(pre):
        screen.canonical_preactivations[(ceil_div(len(pre), 16),)](
            x, w_enc, b_enc, token, feature, count, pre, x.shape[1],
            ENTRIES=16, BLOCK=min(128, next_power_of_two(x.shape[1])),
        )  # fmt: skip


def kth_largest_minimums(
    product: Tensor, k: int, members: Tensor | None, bounds: tuple[Any, ...], x_norms: Tensor
) -> Tensor:
    """Return a lower bound, at least 0, of each token's k-th largest π, [B], among all features or among `members`.

    It is the k-th largest of the maxima of at least 4k groups of features; 0 if k is at least the number of features.

    product [M, B]; members uint8 [M]; bounds: the arguments of `screen.group_maxima` from `output_rounding` to
    `error_slopes`.
    """
    (width, tokens), minimums = product.shape, torch.zeros_like(x_norms)
    if k >= width or not tokens:
        return minimums
    groups = 64
    while groups < MIN_GROUPS_PER_K * k:
        groups *= 2
    maxima = torch.empty(groups, tokens, dtype=x_norms.dtype, device=x_norms.device)
    screen.group_maxima[(groups // 16, ceil_div(tokens, 128))](
        product, members, *bounds, x_norms, maxima, width, tokens, groups,
        MEMBERS=members is not None, GROUPS=16, TILE=128,
    )  # fmt: skip
    raise_to_kth_largest(maxima, k, minimums)
    return minimums


def raise_to_kth_largest(values: Tensor, k: int, low: Tensor) -> Tensor:
    """Raise low [B] to a lower bound of the k-th largest of each column of values [rows, B]; return an upper bound."""
    high, (rows, tokens) = torch.empty_like(low), values.shape
    if tokens:
        screen.kth_largest_bounds[(ceil_div(tokens, 32),)](
            values.contiguous(), low, high, k, rows, tokens,
            STEPS=BISECTIONS, ROWS=min(128, next_power_of_two(rows)), TILE=32,
        )  # fmt: skip
    return high


@contextmanager
def full_precision() -> Iterator[None]:
    """Sum products in float32 within this context: no TF32, no bfloat16 reduction of partial products."""
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        matmul.allow_bf16_reduced_precision_reduction = before[1]
