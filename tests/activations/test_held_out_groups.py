"""The number of rows that a number of training tokens needs, with groups held out."""

from __future__ import annotations

import pytest

from jumpahead.activations.held_out_groups import is_group_held_out, rows_for_tokens

GROUP = 16


@pytest.mark.parametrize(("tokens", "share"), [(1, 0.25), (16, 0.25), (17, 0.25), (1000, 0.1), (1000, 0.7)])
def test_rows_for_a_number_of_tokens_are_just_enough(tokens, share):
    """Without the last group there are fewer rows to train on than asked for, with it there are enough."""
    total = rows_for_tokens(tokens, share, GROUP)
    kept = [n for n in range(total // GROUP) if not is_group_held_out(n, share)]
    assert len(kept) * GROUP >= tokens > (len(kept) - 1) * GROUP
    assert kept[-1] == total // GROUP - 1
