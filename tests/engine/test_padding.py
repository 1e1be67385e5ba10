"""Entries that are none: a late layer's arrays end with π = PADDING, and no architecture gives them anything."""

from __future__ import annotations

import pytest
import torch

from jumpahead.engine.step import Counts, knobs_of
from jumpahead.engine.supports import PADDING, Support, trimmed
from jumpahead.sae.base import DEAD, MAIN, Above, Entries
from tests.engine.cases import CASES, draw, scrambled


@pytest.mark.parametrize("part", [None, 0, MAIN, MAIN | DEAD])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_no_architecture_gives_padding_a_value_a_charge_or_a_gradient(case, part):
    state = scrambled(case, 6, 30, seed=3, dtype=torch.float32)
    state.p |= {name: 3 * tensor for name, tensor in state.p.items() if name == "r_mag"}  # a scale far from 1
    p, arch, n = state.p, state.arch, 30
    v, knobs = arch.derive(p), knobs_of(state, 0.7)
    bits = None if part is None else torch.full((n,), part, dtype=torch.uint8)
    entries = Entries(torch.full((n,), PADDING), torch.arange(n).int(), bits, torch.zeros(n).int())
    values = arch.values(entries, p, v)
    assert all(bool((value == 0).all()) for value in values)
    assert arch.charge(entries, values, v) == 0
    rule = arch.rule(entries, values, p, v, knobs, Counts(8, draw(30, seed=1).abs().float(), torch.ones(8)))
    selection = arch.selection(p, v, knobs, training=True)
    # Where a feature has no lower bound, every token of it is an entry: padding is kept out by colptr alone.
    bounded = torch.ones(n, dtype=torch.bool)
    if isinstance(selection, Above):
        bounded = selection.lower > -torch.inf
    for gradient in (rule.pre, *rule.vectors.values()):
        for term in (*gradient.slopes, gradient.constant):
            assert term is None or bool((term[bounded] == 0).all())
    assert rule.shrink is None or bool((rule.shrink[bounded] == 0).all())


def test_what_is_trimmed():
    padded = Support(
        colptr=torch.tensor([0, 1, 1, 3]), token=torch.tensor([1, 0, 1, 0, 0]).int(),
        feature=torch.tensor([0, 2, 2, 0, 0]).int(), pre=torch.tensor([3.0, 4.0, 5.0, PADDING, PADDING]), part=None,
        indptr=torch.tensor([0, 1, 3]), order=torch.tensor([1, 0, 2, 3, 4]).int(),
    )  # fmt: skip
    found = trimmed(padded)
    assert [one.tolist() for one in (found.token, found.feature, found.pre, found.order)] == [
        [1, 0, 1], [0, 2, 2], [3.0, 4.0, 5.0], [1, 0, 2],
    ]  # fmt: skip
    assert trimmed(found) is found
