"""Padding of supports: no architecture gives it a value or a gradient, and it can be trimmed."""

from __future__ import annotations

import pytest
import torch

from jumpahead.engine.state import make_step_inputs
from jumpahead.engine.supports import PADDING, Support, trim_support
from jumpahead.sae.gradients import Counts
from jumpahead.sae.support import DEAD, MAIN, AboveThreshold, Entries
from tests.engine.cases import one_per_options, random_state, standard_normal


@pytest.mark.parametrize("part", [None, 0, MAIN, MAIN | DEAD])
@pytest.mark.parametrize("case", one_per_options(), ids=lambda case: case.label)
def test_padding_has_no_value_no_penalty_and_no_gradient(case, part):
    state = random_state(case, 6, 30, seed=3, dtype=torch.float32)
    state.params |= {name: 3 * tensor for name, tensor in state.params.items() if name == "r_mag"}  # a scale far from 1
    p, arch, n = state.params, state.arch, 30
    v, step_inputs = arch.derive(p), make_step_inputs(state, 0.7)
    bits = None if part is None else torch.full((n,), part, dtype=torch.uint8)
    entries = Entries(torch.full((n,), PADDING), torch.arange(n).int(), bits, torch.zeros(n).int())
    values = arch.values(entries, p, v)
    assert all(bool((value == 0).all()) for value in values)
    assert arch.sparsity_sum(entries, values, v) == 0
    rule = arch.entry_gradients(
        entries, values, p, v, step_inputs, Counts(8, standard_normal(30, seed=1).abs().float(), torch.ones(8))
    )
    selection = arch.selection(p, v, step_inputs, training=True)
    # Without a lower bound every token is an entry of the feature: only colptr excludes padding.
    has_bound = torch.ones(n, dtype=torch.bool)
    if isinstance(selection, AboveThreshold):
        has_bound = selection.lower > -torch.inf
    for gradient in (rule.pre, *rule.vectors.values()):
        for term in (*gradient.slopes, gradient.constant):
            assert term is None or bool((term[has_bound] == 0).all())
    assert rule.shrink is None or bool((rule.shrink[has_bound] == 0).all())


def test_trimming_drops_the_padding():
    padded = Support(
        colptr=torch.tensor([0, 1, 1, 3]), token=torch.tensor([1, 0, 1, 0, 0]).int(),
        feature=torch.tensor([0, 2, 2, 0, 0]).int(), pre=torch.tensor([3.0, 4.0, 5.0, PADDING, PADDING]), part=None,
        indptr=torch.tensor([0, 1, 3]), order=torch.tensor([1, 0, 2, 3, 4]).int(),
    )  # fmt: skip
    found = trim_support(padded)
    assert [one.tolist() for one in (found.token, found.feature, found.pre, found.order)] == [
        [1, 0, 1], [0, 2, 2], [3.0, 4.0, 5.0], [1, 0, 2],
    ]  # fmt: skip
    assert trim_support(found) is found
