"""Choose the held-out groups of rows from user files by a hash of the group's number."""

from __future__ import annotations

import itertools
import math

from jumpahead.text.documents import is_held_out


def is_group_held_out(number: int, share: float) -> bool:
    """Return True if a group is held out.

    number: the group's number, counted over all files. share: the expected fraction of held-out groups, in [0, 1].
    """
    return is_held_out(f"group {number}", share)


def rows_for_tokens(tokens: int, held_out: float, rows_per_group: int) -> int:
    """Return the smallest number of rows, in whole groups, of which at least `tokens` rows are not held out.

    held_out: the fraction of held-out groups, in [0, 1).
    """
    trained_groups = (number for number in itertools.count() if not is_group_held_out(number, held_out))
    last = next(itertools.islice(trained_groups, math.ceil(tokens / rows_per_group) - 1, None))
    return (last + 1) * rows_per_group
