"""Which SAEs of a comparison form a series, and the names that tell the series apart.

    runs        a series of a study stays one; those of several runs with the same options, recipe and text are one
    other SAEs  SAEs of one folder, make, architecture and width; or those that were named NAME=PATH

Every series has one width. Names that two series would share are told apart by the width or the source.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jumpahead.comparison.members import Member, SeriesGroup, qualified


class NamedSeries(NamedTuple):
    """A series of the frontier with its SAEs."""

    name: str
    title: str
    architecture: str
    members: list[Member]


def named_series(members: Iterable[Member]) -> list[NamedSeries]:
    """Return the series of a comparison, each with a name of its own; an SAE that was named twice is in it once."""
    by_group: dict[SeriesGroup, list[Member]] = defaultdict(list)
    for member in members:
        # The title and the architecture of a series named by the user are those of its first SAE.
        key = next((group for group in by_group if _is_one_series(group, member.group)), member.group)
        if all((other.digest, other.site) != (member.digest, member.site) for other in by_group[key]):
            by_group[key].append(member)
    split = [pair for group, found in by_group.items() for pair in _split_repeated(group, found)]
    names = _distinct([(group.name, group.title) for group, _ in split], split)
    return [
        NamedSeries(name, title, group.architecture, found)
        for (name, title), (group, found) in zip(names, split, strict=True)
    ]


def _is_one_series(one: SeriesGroup, other: SeriesGroup) -> bool:
    """Return True if SAEs of two groups form one series."""
    return (one.name, one.width, one.identity) == (other.name, other.width, other.identity)


def _split_repeated(group: SeriesGroup, members: list[Member]) -> list[tuple[SeriesGroup, list[Member]]]:
    """Return the SAEs of a group as one series, or as one per run if runs trained the same setting and seeds."""
    known = [
        (m.site, m.setting["kind"], m.setting["value"], m.seeds) for m in members if m.setting is not None and m.seeds
    ]
    if len(set(known)) == len(known):
        return [(group, members)]
    runs = dict.fromkeys(_run_of(member) for member in members)
    return [(group, [member for member in members if _run_of(member) == run]) for run in runs]


def _run_of(member: Member) -> str:
    """Return the part of a run's SAE's address before `saes/`."""
    return member.address.rpartition("/saes/")[0]


Pair = tuple[SeriesGroup, list[Member]]
_SUFFIXES: tuple[tuple[Callable[[Pair], str], Callable[[Pair], str]], ...] = (
    (lambda pair: f"-{pair[0].width}", lambda pair: f"{pair[0].width:,} features"),
    (lambda pair: f"-{pair[1][0].source}", lambda pair: pair[1][0].source),
)
"""Words that tell series of one name apart, in names and in titles: the width, then the run or folder."""


def _distinct(names: Sequence[tuple[str, str]], pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """Return names and titles of which no two series share a name. pairs: of the series, in the same order."""
    found = list(names)
    for in_name, in_title in _SUFFIXES:
        clashes = _positions(found)
        for positions in clashes.values():
            suffixes = [in_name(pairs[i]) for i in positions]
            if len(positions) > 1 and len(set(suffixes)) > 1:
                for i, suffix in zip(positions, suffixes, strict=True):
                    found[i] = (found[i][0] + suffix, qualified(found[i][1], in_title(pairs[i])))
    for positions in _positions(found).values():
        for number, i in enumerate(positions[1:], start=2):
            found[i] = (f"{found[i][0]}-{number}", qualified(found[i][1], str(number)))
    return found


def _positions(names: Sequence[tuple[str, str]]) -> Mapping[str, list[int]]:
    """Return the positions of every name."""
    positions: dict[str, list[int]] = defaultdict(list)
    for i, (name, _) in enumerate(names):
        positions[name].append(i)
    return positions


def with_settings(series: NamedSeries, l0: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the setting and the seeds of every SAE of a series, as JSON values.

    l0: the measured L0 by digest; it stands for a setting that is not known. SAEs of one setting whose seeds are not
    known are numbered.
    """
    found, count = [], dict[tuple[Any, ...], int]()
    for member in series.members:
        setting = member.setting or {"kind": "measured", "value": float(f"{l0[member.digest]:.6g}")}
        key = (member.site, setting["kind"], setting["value"])
        seeds = member.seeds or (count.get(key, 0), 0)
        count[key] = count.get(key, 0) + 1
        found.append({"setting": setting, "sae_seed": seeds[0], "stream_seed": seeds[1]})
    return found
