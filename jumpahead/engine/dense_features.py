"""Dense features: those active on a large share of tokens go through matrix products, a block of features at a time.

A sparse support pays if most entries are zero: it gathers a row for every entry. For a feature with an entry on a fifth
of the tokens or more, multiplying the zeros is cheaper. So a step splits the features: frequent ones go to dense
blocks, all others to the support. At the start of the paper's preset, when half of all pre-activations exceed the
threshold, every feature is in a block. The dead features that AuxK chooses from form a block too: they are few, and it
chooses many of them.

Which features are frequent follows from counts (the share of the last batch's tokens with an entry of the feature),
never from timings, so runs are reproducible. An asynchronous layer updates that share at every
SHARE_UPDATE_INTERVAL-th step and at a few early ones, and waits for its device only then, and in steps with an AuxK
loss of a threshold architecture; it leaves the dead features of TopK architectures in the support.

A block does what the support does, with the same functions of the architecture:

    π       [m, B] in float32; the canonical π near every value at which something is decided
    x̂       += valuesᵀ·W_dec
    rows    ∂L/∂π·(x − b_dec) and valuesᵀ·residual as products; then the same row updates

The tensors of a block are computed twice, for x̂ and for the rows, unless they are small enough to cache: so no B×M
tensor exists. The first pass counts the active entries of all blocks, which the rule needs in the second.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from jumpahead.engine.canonical import topk_per_token
from jumpahead.engine.error_bounds import bias_error_bound, product_error_bound
from jumpahead.engine.interface import CentredInput, Kernels, RowUpdate, State, StepObserver
from jumpahead.engine.lazy_adam import AdamStep
from jumpahead.engine.supports import Support, drop_entries
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.gradients import Counts, StepInputs
from jumpahead.sae.parameters import Params
from jumpahead.sae.support import DEAD, MAIN, AboveThreshold, Entries, Number, Selection

DENSE_SHARE = 0.2
"""Share of tokens above which a feature goes through dense products (docs/LOG.md, 2026-11-24)."""
MIN_DENSE_FEATURES = 16
"""Fewer frequent features than this stay in the support: a block has a cost of its own."""
MAX_DEAD_PER_SELECTED = 3
"""AuxK's dead features form a block if there are at most this many for each that it selects per token."""
BLOCK_ENTRIES = 2**22
"""Entries (feature, token) of a block."""
MAX_CACHED_ENTRIES = 2**23
"""Entries of all blocks up to which their tensors are cached between x̂ and the rows."""
SAMPLE_TOKENS = 512
"""Tokens from which the support share of a new SAE is estimated."""
SHARE_UPDATE_INTERVAL = 32
"""Steps between two updates of the support share by an asynchronous layer."""


class DenseBlock(NamedTuple):
    """The tensors of one block of m features."""

    entries: Entries
    values: tuple[Tensor, ...]
    """[m, B] per reconstruction."""


class DenseTotals(NamedTuple):
    """The contribution of all blocks to the forward pass of a step."""

    decoded: tuple[Tensor, ...]
    """[B, d] per reconstruction: Σ value·d_j."""
    sparsity_sum: Number
    """The architecture's `sparsity_sum` over the blocks."""
    entries: Tensor | int
    """Number of entries in the support."""
    features: int
    """Number of features in the blocks."""


@final
class DenseFeatures:
    """The blocks of one step; false if there are none."""

    def __init__(
        self, groups: list[Tensor], selection: Selection, state: State, centred: CentredInput, derived: Params,
        step_inputs: StepInputs, kernels: Kernels, dead_group: int | None = None,
    ):  # fmt: skip
        self.groups = groups
        """The features of each block, ascending, int64 [m]."""
        self.dead_group = dead_group
        """The index of the block that holds AuxK's dead features; None without one."""
        self.selection, self.state, self.centred, self.kernels = selection, state, centred, kernels
        self.derived, self.step_inputs = derived, step_inputs
        empty = torch.empty(0, dtype=torch.int64, device=centred.x.device)
        self.main_entries: list[tuple[Tensor, Tensor]] = [(empty, empty) for _ in groups]
        """Per block: (row, token) of the entries taken from the support."""
        self._cache: dict[int, DenseBlock] = {}
        self._is_cached = sum(len(group) for group in groups) * len(centred.x) <= MAX_CACHED_ENTRIES

    def __bool__(self) -> bool:
        return bool(self.groups)

    def take_entries(self, support: Support) -> Support:
        """Move the entries of the blocks' features from the support to their block, as MAIN; return the rest."""
        if self.selection.dead is not None and support.part is None:
            support = support._replace(part=torch.full_like(support.pre, MAIN, dtype=torch.uint8))
        if isinstance(self.selection, AboveThreshold) or not self.groups:
            return support  # `split_dense_sparse` has excluded them from the selection
        counts = support.colptr.diff()
        is_dense = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
        for group in self.groups:
            is_dense[group] = True
        if not bool((counts[is_dense] > 0).any()):
            return support
        moving = is_dense[support.feature.long()]
        feature, token = support.feature[moving].long(), support.token[moving].long()
        for number, group in enumerate(self.groups):
            row = torch.searchsorted(group, feature).clamp_max(len(group) - 1)
            is_here = group[row] == feature
            self.main_entries[number] = (row[is_here], token[is_here])
        return drop_entries(support, moving)

    def forward(self, counts: Counts) -> DenseTotals:
        """Return the blocks' part of x̂ and of the sums over entries; add what fired to counts, in place."""
        arch, w_dec = self.state.arch, self.state.params["W_dec"]
        decoded: list[Tensor] = []
        sparsity_sum: Number = 0.0
        num_entries: Tensor | int = 0
        for number, group in enumerate(self.groups):
            block, directions = self._block(number), w_dec[group]
            products = [self.kernels.matmul(value.T, directions) for value in block.values]
            decoded = [total + part for total, part in zip(decoded, products, strict=True)] if decoded else products
            on = arch.features(block.values) > 0
            counts.fired[group] = on.sum(1).to(counts.fired.dtype)
            if counts.active is not None:
                counts.active.add_(on.sum(0))
            sparsity_sum = sparsity_sum + arch.sparsity_sum(block.entries, block.values, self.derived).double()
            num_entries = num_entries + self._is_in_support(block.entries, group).sum()
        return DenseTotals(tuple(decoded), sparsity_sum, num_entries, sum(map(len, self.groups)))

    def update_rows(
        self, update: RowUpdate, vector_gradients: dict[str, Tensor], counts: Counts, support_share: Tensor,
        adam: AdamStep, observer: StepObserver | None = None,
    ) -> Tensor:  # fmt: skip
        """Run steps 4 and 5 for every block, in place; return [d] the blocks' `RowUpdateResult.input_gradient_sum`.

        vector_gradients, support_share [M] each: the elements of the blocks' features are filled in. counts: of the
        whole batch.
        """
        state, matmul = self.state, self.kernels.matmul
        input_gradient_sum = update.x.new_zeros(update.x.shape[1])
        for number, group in enumerate(self.groups):
            block = self._block(number)
            rule = state.arch.entry_gradients(
                block.entries, block.values, state.params, self.derived, self.step_inputs, counts
            )
            directions = state.params["W_dec"][group]
            is_skipped = [
                may_skip and not self.kernels.is_async and not bool((value != 0).any())
                for may_skip, value in zip(update.may_skip, block.values, strict=True)
            ]
            projections = tuple(
                torch.zeros_like(block.entries.pre)
                if is_skipped[r]
                else matmul(directions, residual.T).mul_(update.scales[r])
                for r, residual in enumerate(update.residuals)
            )
            if observer is not None:
                observer(block.entries, block.values, rule, projections)
            d_pre = rule.pre.evaluate(projections)
            for name, gradient in rule.vectors.items():
                vector_gradients[name][group] = gradient.evaluate(projections).sum(1)
            is_main = self._is_main(block.entries, group)
            support_share[group] = is_main.sum(1).to(support_share.dtype) / len(update.x)
            input_gradient_sum += d_pre.sum(1) @ state.params["W_enc"][group]
            g_dec = torch.zeros_like(directions)
            has_enc_gradient = (d_pre != 0).any(1)
            has_dec_gradient = torch.zeros_like(has_enc_gradient)
            for r in range(len(update.values)):
                if is_skipped[r]:
                    continue
                g_dec += matmul(block.values[r], update.residuals[r]).mul_(update.scales[r])
                has_dec_gradient |= (block.values[r] != 0).any(1) & (update.scales[r] != 0)
            norm_gradient = None
            if rule.shrink is not None:
                norm_gradient = d_pre.new_zeros(len(support_share))
                norm_gradient[group] = rule.shrink.sum(1)
                has_dec_gradient |= norm_gradient[group] != 0
            touched = torch.stack([has_enc_gradient, has_dec_gradient], 1)
            g_enc = matmul(d_pre, update.x)
            self._cache.pop(number, None)
            self.kernels.apply_row_gradients(
                group, g_enc, g_dec, touched, update._replace(decoder_norm_gradient=norm_gradient), state, adam
            )
        return input_gradient_sum

    def _block(self, number: int) -> DenseBlock:
        """Return the tensors of a block, cached or computed again with the same bits."""
        if number in self._cache:
            return self._cache[number]
        entries = self._make_entries(number)
        block = DenseBlock(entries, self.state.arch.values(entries, self.state.params, self.derived))
        if self._is_cached:
            self._cache[number] = block
        return block

    def _is_in_support(self, entries: Entries, group: Tensor) -> Tensor:
        """Return which entries of a block belong to the support, [m, B] bool."""
        return self._is_main(entries, group) if entries.part is None else entries.part != 0

    def _is_main(self, entries: Entries, group: Tensor) -> Tensor:
        """Return which entries of a block count in the support share, [m, B] bool: not those of a threshold
        architecture that AuxK alone has selected."""
        if isinstance(self.selection, AboveThreshold):
            return entries.pre > self.selection.lower[group][:, None]
        assert entries.part is not None
        return entries.part != 0

    def _make_entries(self, number: int) -> Entries:
        """Return the entries of a block, with the canonical π wherever an error of the product could decide."""
        group, x, p = self.groups[number], self.centred.x, self.state.params
        w, b = p["W_enc"][group], p["b_enc"][group]
        pre = self.kernels.matmul(w, x.T).add_(b[:, None])
        norms = self.state.encoder_for(self.kernels).norms[group]
        margin = torch.outer(product_error_bound(x, norms), self.centred.norms).add_(2 * bias_error_bound(b)[:, None])
        part = None
        if isinstance(self.selection, AboveThreshold):
            near = torch.zeros_like(pre, dtype=torch.bool)
            for edge in (self.selection.lower, *self.selection.edges):
                near |= (pre - edge[group][:, None]).abs_() <= margin
            self.kernels.write_exact(pre, near, group, x, p["W_enc"], p["b_enc"])
            if self.selection.dead is not None:
                part = (pre > self.selection.lower[group][:, None]).to(torch.uint8) * MAIN
        else:
            row, token = self.main_entries[number]
            part = torch.zeros_like(pre, dtype=torch.uint8)
            part[row, token] = MAIN
        if number == self.dead_group:
            assert part is not None
            part |= self._dead_topk(group, pre, margin) * DEAD
        return Entries(pre, group, part)

    def _dead_topk(self, group: Tensor, pre: Tensor, margin: Tensor) -> Tensor:
        """Return the mask of the k_dead largest positive π of each token, [m, B] uint8; ties go to the lower feature.

        Overwrites pre with the canonical π where an error of the product could decide. pre, margin [m, B].
        """
        k = self.selection.k_dead
        lows, highs = pre - margin, pre + margin
        low = high = pre.new_zeros(pre.shape[1])
        if k < len(group):
            low, high = self.kernels.kth_largest_bounds(lows, k)[0], self.kernels.kth_largest_bounds(highs, k)[1]
        is_chosen = lows > high
        row, token, exact = self._write_exact(pre, (highs >= low) & ~is_chosen, group)
        is_largest = topk_per_token(token, exact, k - is_chosen.sum(0), pre.shape[1])
        is_chosen[row[is_largest], token[is_largest]] = True
        return is_chosen.to(torch.uint8)

    def _write_exact(self, pre: Tensor, unsure: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Overwrite pre [m, B] with the canonical π where unsure is set, in place; return (row, token, π) of those."""
        row, token = unsure.nonzero(as_tuple=True)
        p = self.state.params
        exact = self.kernels.canonical_preactivations(self.centred.x, p["W_enc"], p["b_enc"], token, group[row])
        pre[row, token] = exact
        return row, token, exact


def split_dense_sparse(
    selection: Selection, state: State, centred: CentredInput, derived: Params, step_inputs: StepInputs,
    kernels: Kernels,
) -> tuple[Selection, DenseFeatures]:  # fmt: skip
    """Return the selection for the sparse support, and the dense features that it no longer covers."""
    tokens, groups = len(centred.x), []
    if isinstance(selection, AboveThreshold):
        features = frequent_features(state, selection, kernels)
        if selection.dead is not None:
            groups = [group for group in (selection.dead.nonzero()[:, 0],) if len(group)]
            features = features[~selection.dead[features]]
        dead_group = 0 if groups else None
        if len(features) >= MIN_DENSE_FEATURES:
            groups += features.split(max(1, BLOCK_ENTRIES // tokens))
        sparse: Selection = selection._replace(dead=None)
        if groups:
            sparse = AboveThreshold(selection.lower.index_fill(0, torch.cat(groups), torch.inf))
        return sparse, DenseFeatures(groups, selection, state, centred, derived, step_inputs, kernels, dead_group)
    if selection.dead is not None and not kernels.is_async:
        features = selection.dead.nonzero()[:, 0]
        if len(features) <= MAX_DEAD_PER_SELECTED * selection.k_dead and len(features) * tokens <= BLOCK_ENTRIES:
            dense = DenseFeatures([features], selection, state, centred, derived, step_inputs, kernels, dead_group=0)
            return selection._replace(dead=None), dense
    return selection, DenseFeatures([], selection, state, centred, derived, step_inputs, kernels)


def frequent_features(state: State, selection: AboveThreshold, kernels: Kernels) -> Tensor:
    """Return the features that go through dense products, ascending, int64, by the current support share."""
    if not kernels.is_async:
        return ((state.support_share > DENSE_SHARE) | (selection.lower == -torch.inf)).nonzero()[:, 0]
    if state.frequent is None or state.frequent[0] is not state.support_share:
        state.frequent = state.support_share, (state.support_share > DENSE_SHARE).nonzero()[:, 0]
    return state.frequent[1]


def is_share_update_step(step: int, kernels: Kernels) -> bool:
    """Return whether the support share is updated by this step; steps count from 1."""
    return not kernels.is_async or step % SHARE_UPDATE_INTERVAL == 0 or step in (1, 2, 4, 8, 16)


def force_dense_if_unbounded(share: Tensor, selection: Selection, kernels: Kernels) -> Tensor:
    """Set the support share to 1 for features whose lower bound is −∞, so that they stay dense until the next update.

    share [M] → [M]. Only needed by asynchronous layers; `frequent_features` checks the bound itself for others.
    """
    if kernels.is_async and isinstance(selection, AboveThreshold):
        return share.masked_fill(selection.lower == -torch.inf, 1.0)
    return share


def estimate_support_share(arch: Architecture, p: Params, sample: Tensor) -> Tensor:
    """Return the support share of each feature of a new SAE, [M], estimated from the first rows of sample [n, d]."""
    derived, width = arch.derive(p), len(p["W_enc"])
    selection = arch.selection(p, derived, StepInputs(), training=True)
    if not isinstance(selection, AboveThreshold):
        return torch.zeros(width, device=sample.device)
    x = sample[:SAMPLE_TOKENS] - p["b_dec"]
    share = torch.empty(width, device=sample.device)
    for some in torch.arange(width, device=sample.device).split(max(1, BLOCK_ENTRIES // len(x))):
        pre = torch.addmm(p["b_enc"][some, None], p["W_enc"][some], x.T)
        share[some] = (pre > selection.lower[some, None]).float().mean(1)
    return share
