"""Features that are on for a large share of the tokens go through matrix products, a block of features at a time.

A support pays where most entries are zero: it gathers a row for every entry. For a feature that is on for a fifth of
the tokens or more, multiplying the zeros is cheaper. So a step divides the features: popular ones into blocks, all
others into the support; at the start of the paper's preset, when half of all pre-activations pass the threshold, every
feature is in a block. The dead features that AuxK chooses from are few, and it chooses many of them: a block as well.

Who is popular follows from counts (the share of the last batch's tokens that a feature had an entry for), never from
timings, so runs repeat. A layer that is late (late.py) keeps to the share of every KEEP-th batch and of a few early
ones: only then it waits for its device to say who that is. AuxK's dead features stay in the support there.

A block does what the support does, with the same functions of the architecture:

    π       [m, B] in float32; near a value at which something is decided, the canonical π
    x̂       += valuesᵀ·W_dec
    rows    ∂L/∂π·(x − b_dec) and valuesᵀ·residual as products; then the same row updates

A block's tensors are made twice, for x̂ and for the rows, unless they are few: no B×M tensor exists. The first time all
blocks are counted, so that the rule, which is asked the second time, knows what fired in the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor

from jumpahead.engine.decide import bias_slack, largest_of_each, slack
from jumpahead.engine.supports import Support, without
from jumpahead.sae.base import (
    DEAD,
    MAIN,
    Above,
    Architecture,
    Counts,
    Entries,
    Knobs,
    Number,
    Params,
    Selection,
)

if TYPE_CHECKING:
    from jumpahead.engine.lazy_adam import Adam
    from jumpahead.engine.step import Centred, Kernels, RowUpdate, State
    from jumpahead.engine.step_diagnostics import Watch

POPULAR = 0.2
"""Share of tokens above which a feature goes through products (docs/LOG.md, 2026-11-24)."""
FEWEST = 16
"""Popular features below this number stay in the support: a block has a cost of its own."""
CROWDED = 3
"""AuxK's dead features are a block where there are at most this many for each that it takes."""
SIZE = 2**22
"""Entries of a block."""
KEPT = 2**23
"""Entries of all blocks up to which their tensors are kept between x̂ and the rows."""
SAMPLE = 512
"""Tokens that a fresh SAE's counts are estimated from."""
KEEP = 32
"""Steps between two decisions of a late layer who is popular."""


class Opened(NamedTuple):
    """A block's tensors."""

    entries: Entries
    values: tuple[Tensor, ...]
    """[m, B] per reconstruction."""


class Totals(NamedTuple):
    """What all blocks add to a step."""

    decoded: tuple[Tensor, ...]
    """[B, d] per reconstruction: Σ value·d_j."""
    charge: Number
    """The sum of the architecture's `charge`s."""
    entries: Tensor | int
    """Those in the support."""
    features: int


@final
class Blocks:
    """The blocks of one step."""

    def __init__(
        self, groups: list[Tensor], selection: Selection, state: State, centred: Centred, v: Params, knobs: Knobs,
        kernels: Kernels,
    ):  # fmt: skip
        self.groups = groups
        """The features of each block, ascending, int64 [m]."""
        self.selection, self.state, self.centred, self.kernels = selection, state, centred, kernels
        self.v, self.knobs = v, knobs
        nobody = torch.empty(0, dtype=torch.int64, device=centred.x.device)
        self.main: list[tuple[Tensor, Tensor]] = [(nobody, nobody) for _ in groups]
        """Per block: (row, token) of entries that the support held."""
        self._kept: dict[int, Opened] = {}
        self._keeps = sum(len(group) for group in groups) * len(centred.x) <= KEPT

    def __bool__(self) -> bool:
        return bool(self.groups)

    def take(self, support: Support) -> Support:
        """The support without the entries of blocks' features, which join their block as entries of its main part."""
        if isinstance(self.selection, Above) or not self.groups:
            return support  # `divide` has left them out
        if support.part is None:
            support = support._replace(part=torch.full(support.pre.shape, MAIN, dtype=torch.uint8))
        counts = support.colptr.diff()
        ours = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
        for group in self.groups:
            ours[group] = True
        if not bool((counts[ours] > 0).any()):
            return support
        moving = ours[support.feature.long()]
        feature, token = support.feature[moving].long(), support.token[moving].long()
        for number, group in enumerate(self.groups):
            row = torch.searchsorted(group, feature).clamp_max(len(group) - 1)
            is_here = group[row] == feature
            self.main[number] = (row[is_here], token[is_here])
        return without(support, moving)

    def totals(self, counts: Counts) -> Totals:
        """x̂'s part and the totals, before anything is updated; what fired joins `counts`, in place."""
        w_dec = self.state.p["W_dec"]
        decoded: list[Tensor] = []
        charge: Number = 0.0
        inside: Tensor | int = 0
        for number, group in enumerate(self.groups):
            one, directions = self._open(number), w_dec[group]
            parts = [self.kernels.product(value.T, directions) for value in one.values]
            decoded = [total + part for total, part in zip(decoded, parts, strict=True)] if decoded else parts
            on = self.state.arch.features(one.values) > 0
            counts.fired[group] = on.sum(1).to(counts.fired.dtype)
            if counts.active is not None:
                counts.active.add_(on.sum(0))
            charge = charge + self.state.arch.charge(one.entries, one.values, self.v).double()
            inside = inside + self._inside(one.entries, group).sum()
        return Totals(tuple(decoded), charge, inside, sum(map(len, self.groups)))

    def rows(
        self, update: RowUpdate, sums: dict[str, Tensor], counts: Counts, share: Tensor, adam: Adam,
        watch: Watch | None = None,
    ) -> Tensor:  # fmt: skip
        """Step 5 for every block; fills in what belongs to its features of sums and share, [M] each. Returns [d] what
        `Rows.pull` holds. counts: of the whole batch."""
        state, product = self.state, self.kernels.product
        pull = update.x.new_zeros(update.x.shape[1])
        for number, group in enumerate(self.groups):
            one = self._open(number)
            rule = state.arch.rule(one.entries, one.values, state.p, self.v, self.knobs, counts)
            directions = state.p["W_dec"][group]
            idle = [
                spare and not self.kernels.late and not bool((value != 0).any())
                for spare, value in zip(update.spare, one.values, strict=True)
            ]
            projections = tuple(
                torch.zeros_like(one.entries.pre) if idle[r] else product(directions, residual.T).mul_(update.scales[r])
                for r, residual in enumerate(update.residuals)
            )
            if watch is not None:
                watch(one.entries, one.values, rule, projections)
            d_pre = rule.pre.at(projections)
            for name, gradient in rule.vectors.items():
                sums[name][group] = gradient.at(projections).sum(1)
            share[group] = self._inside(one.entries, group).sum(1).to(share.dtype) / len(update.x)
            pull += d_pre.sum(1) @ state.p["W_enc"][group]
            g_dec = torch.zeros_like(directions)
            touched = (d_pre != 0).any(1)
            for r in range(len(update.values)):
                if idle[r]:
                    continue
                g_dec += product(one.values[r], update.residuals[r]).mul_(update.scales[r])
                touched |= (one.values[r] != 0).any(1)
            shrink = None
            if rule.shrink is not None:
                shrink = d_pre.new_zeros(len(share))
                shrink[group] = rule.shrink.sum(1)
            g_enc = product(d_pre, update.x)
            self._kept.pop(number, None)
            self.kernels.given_rows(group, g_enc, g_dec, touched, update._replace(shrink=shrink), state, adam)
        return pull

    def _open(self, number: int) -> Opened:
        """The tensors of a block; the same bits each time."""
        if number in self._kept:
            return self._kept[number]
        entries = self._entries(number)
        one = Opened(entries, self.state.arch.values(entries, self.state.p, self.v))
        if self._keeps:
            self._kept[number] = one
        return one

    def _inside(self, entries: Entries, group: Tensor) -> Tensor:
        """bool [m, B]: who is in the support."""
        if entries.part is not None:
            return entries.part != 0
        assert isinstance(self.selection, Above)
        return entries.pre > self.selection.lower[group][:, None]

    def _entries(self, number: int) -> Entries:
        group, x, p = self.groups[number], self.centred.x, self.state.p
        w, b = p["W_enc"][group], p["b_enc"][group]
        pre = self.kernels.product(w, x.T).add_(b[:, None])
        norms = self.state.encoder_for(self.kernels).norms[group]
        margin = torch.outer(slack(x, norms), self.centred.norms).add_(2 * bias_slack(b)[:, None])
        if not isinstance(self.selection, Above):
            return self._largest(number, pre, margin)
        near = torch.zeros_like(pre, dtype=torch.bool)
        for edge in (self.selection.lower, *self.selection.edges):
            near |= (pre - edge[group][:, None]).abs_() <= margin
        self.kernels.settle(pre, near, group, x, p["W_enc"], p["b_enc"])
        return Entries(pre, group)

    def _largest(self, number: int, pre: Tensor, margin: Tensor) -> Entries:
        """Part DEAD: the k_dead largest positive of each token, of equal ones the lower feature. Part MAIN: `take`."""
        assert not isinstance(self.selection, Above)
        group, k = self.groups[number], self.selection.k_dead
        lows, highs = pre - margin, pre + margin
        low = high = pre.new_zeros(pre.shape[1])
        if k < len(group):
            low, high = self.kernels.kth(lows, k)[0], self.kernels.kth(highs, k)[1]
        chosen = lows > high
        row, token, exact = self._settle(pre, (highs >= low) & ~chosen, group)
        kept = largest_of_each(token, exact, k - chosen.sum(0), pre.shape[1])
        chosen[row[kept], token[kept]] = True
        part = torch.where(chosen, DEAD, 0).to(torch.uint8)
        row, token = self.main[number]
        part[row, token] |= MAIN
        return Entries(pre, group, part)

    def _settle(self, pre: Tensor, unsure: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put the canonical π where something is decided; returns (row, token, π) of these entries."""
        row, token = unsure.nonzero(as_tuple=True)
        p = self.state.p
        exact = self.kernels.canonical(self.centred.x, p["W_enc"], p["b_enc"], token, group[row])
        pre[row, token] = exact
        return row, token, exact


def divide(
    selection: Selection, state: State, centred: Centred, v: Params, knobs: Knobs, kernels: Kernels
) -> tuple[Selection, Blocks]:
    """What is left for the support, and the blocks."""
    tokens, groups = len(centred.x), []
    if isinstance(selection, Above):
        features = popular(state, selection, kernels)
        if len(features) >= FEWEST:
            groups = list(features.split(max(1, SIZE // tokens)))
            sparse: Selection = Above(selection.lower.index_fill(0, features, torch.inf))
        else:
            sparse = selection
        return sparse, Blocks(groups, selection, state, centred, v, knobs, kernels)
    if selection.dead is not None and not kernels.late:
        features = selection.dead.nonzero()[:, 0]
        if len(features) <= CROWDED * selection.k_dead and len(features) * tokens <= SIZE:
            blocks = Blocks([features], selection, state, centred, v, knobs, kernels)
            return selection._replace(dead=None), blocks
    return selection, Blocks([], selection, state, centred, v, knobs, kernels)


def popular(state: State, selection: Above, kernels: Kernels) -> Tensor:
    """The features that go through products, ascending, int64: by the share as it stands."""
    if not kernels.late:
        return ((state.share > POPULAR) | (selection.lower == -torch.inf)).nonzero()[:, 0]
    if state.popular is None or state.popular[0] is not state.share:
        state.popular = state.share, (state.share > POPULAR).nonzero()[:, 0]
    return state.popular[1]


def is_decided(t: int, kernels: Kernels) -> bool:
    """Whether the share is taken from step t."""
    return not kernels.late or t % KEEP == 0 or t in (1, 2, 4, 8, 16)


def with_endless(share: Tensor, selection: Selection, kernels: Kernels) -> Tensor:
    """The share, of features without a lower bound 1 where it has to last. [M]"""
    if kernels.late and isinstance(selection, Above):
        return share.masked_fill(selection.lower == -torch.inf, 1.0)
    return share


def first_share(arch: Architecture, p: Params, sample: Tensor) -> Tensor:
    """The share of tokens with an entry of each feature of a fresh SAE, estimated from some of sample [n, d]. [M]"""
    v, width = arch.derive(p), len(p["W_enc"])
    selection = arch.selection(p, v, Knobs(), training=True)
    if not isinstance(selection, Above):
        return torch.zeros(width, device=sample.device)
    x = sample[:SAMPLE] - p["b_dec"]
    share = torch.empty(width, device=sample.device)
    for some in torch.arange(width, device=sample.device).split(max(1, SIZE // len(x))):
        pre = torch.addmm(p["b_enc"][some, None], p["W_enc"][some], x.T)
        share[some] = (pre > selection.lower[some, None]).float().mean(1)
    return share
