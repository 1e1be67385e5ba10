"""Which groups of rows that were computed elsewhere are held out: a hash of the group's number decides."""

from __future__ import annotations

import itertools
import math

from jumpahead.text.documents import is_held_out


def is_group_held_out(number: int, share: float) -> bool:
    """Return whether a group, by its number over all files, is held out. share: of the groups, in [0, 1]."""
    return is_held_out(f"group {number}", share)


def rows_for_tokens(tokens: int, held_out: float, group: int) -> int:
    """Return the number of rows, in whole groups, of which at least `tokens` are not held out. group: its rows."""
    trained = (number for number in itertools.count() if not is_group_held_out(number, held_out))
    last = next(itertools.islice(trained, math.ceil(tokens / group) - 1, None))
    return (last + 1) * group
