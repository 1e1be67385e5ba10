"""The k largest positive pre-activations of each token, found while the encoder product streams by in blocks."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine.error_bounds import BF16_OUTPUT_ERROR, bias_error_bound
from jumpahead.engine.interface import CentredInput, EncoderWeights
from jumpahead.engine.kernels.base import encoder_error_slope
from jumpahead.engine.kernels.numba.candidates import CandidateBuffer
from jumpahead.engine.kernels.numba.entries import FeatureMajorEntries, keep_entries, token_order
from jumpahead.engine.kernels.numba.screen import (
    group_maxima,
    kth_largest_bounds,
    mark_reaching,
    mark_topk,
    recompute_preactivations,
    screen_topk,
)
from jumpahead.engine.kernels.numba.threads import parallel_for
from jumpahead.engine.kernels.numba.workspace import Workspace

GROUPS_PER_K = 8
"""Groups of features per selected feature. The k-th largest group maximum bounds the k-th largest π from below."""


@final
class TopKSearch:
    """The k largest positive π of each token, among all features or among `members`, bool [M].

    name: of its scratch memory, distinct for searches that run at the same time.
    """

    def __init__(
        self, workspace: Workspace, name: str, k: int, members: Tensor | None, x: CentredInput,
        encoder: EncoderWeights, b_enc: Tensor,
    ):  # fmt: skip
        dtype, tokens = x.x.numpy().dtype, len(x.x)
        groups, group = feature_groups(len(b_enc), members, max(64, GROUPS_PER_K * k))
        self._k, self._x, self._encoder, self._b_enc = k, x, encoder, b_enc
        self._bounds = (
            dtype.type(0.0 if encoder.bf16 is None else BF16_OUTPUT_ERROR), b_enc.numpy(),
            bias_error_bound(b_enc).numpy(), encoder_error_slope(x, encoder).numpy(), x.norms.numpy(), group,
        )  # fmt: skip
        self._candidates = CandidateBuffer(workspace, dtype, len(b_enc))
        self._group_maxima = workspace.array(f"{name} group maxima", (groups, tokens), dtype)
        self._group_maxima[:] = -np.inf
        self._minimums = np.zeros(tokens, dtype)
        """[B] lower bounds of each token's k-th largest π."""
        self._blocks_seen = [0] * torch.get_num_threads()

    def screen_block(self, worker: int, start: int, block: np.ndarray) -> None:
        """Screen one block of the product, from feature `start`.

        Workers update the same maxima concurrently: a value read at any time is a valid lower bound, and a lost update
        only makes a minimum slightly lower.
        """
        group_maxima(block, start, *self._bounds, self._group_maxima)
        self._blocks_seen[worker] += 1
        # Later blocks raise the minimums little, so they are updated after 1, 2, 4, … blocks.
        if self._blocks_seen[worker] & (self._blocks_seen[worker] - 1) == 0:
            minimums = self._minimums
            kth_largest_bounds(0, len(minimums), self._group_maxima, self._k, minimums, np.empty_like(minimums))
        self._candidates.fill(screen_topk, block, start, *self._bounds, self._minimums)

    def result(self) -> FeatureMajorEntries:
        """Return the k largest positive entries of each token with their canonical π, after all blocks."""
        minimums, tokens = self._minimums, len(self._minimums)
        parallel_for(kth_largest_bounds, tokens, self._group_maxima, self._k, minimums, np.empty_like(minimums))
        found = self._candidates.entries()
        keep = np.empty(len(found.token), np.bool_)
        parallel_for(mark_reaching, len(keep), found.token, found.pre, minimums, keep)
        found = keep_entries(found, keep)
        weights = (self._x.x.numpy(), self._encoder.w_enc.numpy(), self._b_enc.numpy())
        parallel_for(recompute_preactivations, len(self._b_enc), *weights, *found)
        keep = np.empty(len(found.token), np.bool_)
        parallel_for(mark_topk, tokens, *token_order(found.token, tokens), found.pre, self._k, keep)
        return keep_entries(found, keep)


def feature_groups(width: int, members: Tensor | None, max_groups: int) -> tuple[int, np.ndarray]:
    """Partition all features, or `members` (bool [M]), into at most `max_groups` groups of consecutive features.

    Returns the number of groups, and the group of each feature, [M] int64; −1 for features that are not members.
    """
    chosen = np.arange(width) if members is None else members.numpy().nonzero()[0]
    groups, group = min(max_groups, len(chosen)), np.full(width, -1, np.int64)
    group[chosen] = np.arange(len(chosen)) * groups // max(1, len(chosen))
    return groups, group
