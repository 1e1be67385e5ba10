"""Activations on disk: written once, by any number of processes, read by any number of SAEs and runs. The same bytes as
`live`.

    activations.json             what they are activations of, and which groups lie in which file; says whether all do
    shard-00000.safetensors      whole groups: one tensor [rows, d] per site, and beside it int32 [rows] `token`,
                                 `document` (an index into the contexts' documents) and `position`; `files.py`
    also/NAME/                   the same of sites that the study got later; what was there is not written again
    held_out/                    all of this of the text that is evaluated on: what SAEs are measured on without the LM

Which groups a file holds follows from rows per group and `shard_mib` alone, and a file says itself what it is. So any
process can tell what is missing; process i of n writes the files i − 1, i − 1 + n, …, whatever the others do, and who
finds everything there says so in activations.json. A killed writer continues with its first file that is not there. A
torn file is written again; one whose bytes changed is refused, by name, when the group is first read.

    bytes = rows · (Σ_sites d · itemsize + 12)
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from jumpahead import formatting, store
from jumpahead.activations import ActivationsConfig, row_bytes, ways_to_fit
from jumpahead.activations.base import DTYPES, Activations, Options, read_options
from jumpahead.activations.origins.live import Live
from jumpahead.activations.row_files import Column, Reader, write
from jumpahead.errors import ArtefactError, StudyError
from jumpahead.lm.model import LM
from jumpahead.progress import Phase, Progress, Silent
from jumpahead.store import read_json, write_json
from jumpahead.text.contexts import Contexts

SCHEMA = "jumpahead.activations/2"
INDEX = "activations.json"
HELD_OUT, ALSO = "held_out", "also"
LABELS = ("token", "document", "position")
MAKE = "jumpahead harvest"
WAY_OUT = f"remove it, and `{MAKE}` writes it again"
_OPEN = 64  # files kept open at once
_SOON = 4  # groups that the system is told of before they are read
InputsOf = Callable[[Sequence[str]], str]
"""A digest by which activations at some sites are known without a language model."""


class ShardsOptions(Options):
    """How activations are cut into files."""

    shard_mib: float = Field(default=256, gt=0)
    """Size of a file, about, in MiB."""


class Part(NamedTuple):
    """Which of several processes this is, all writing one folder."""

    number: int = 1
    """From 1."""
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """`2/4`; StudyError for what is none."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        part = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= part.number <= part.of:
            raise StudyError(f"--shard {text}: write it as I/N with I from 1 to N, for instance --shard 2/4.")
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, number: int) -> bool:
        """Whether this process writes file `number`, from 0."""
        return number % self.of == self.number - 1


class _Set:
    """The files of one folder, which hold the same sites."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_json(folder / INDEX, SCHEMA, verb=MAKE)
        self.rows_per_group = np.array(self.index["rows_per_group"], dtype=np.int64)
        self._first = np.array([first for first, _ in self.index["shards"]])
        self._files: dict[int, Reader] = {}

    @property
    def sites(self) -> dict[str, int]:
        """d of each."""
        return {str(site): int(width) for site, width in self.index["sites"].items()}

    @property
    def there(self) -> int:
        """How many of its files."""
        return sum((self.folder / _name(number)).is_file() for number in range(len(self.index["shards"])))

    @property
    def is_complete(self) -> bool:
        return bool(self.index["complete"]) and self.there == len(self.index["shards"])

    def find(self, group: int) -> tuple[Reader, int]:
        """The file that holds a group, and the group's number in it."""
        number = int(np.searchsorted(self._first, group, side="right")) - 1
        first = int(self._first[number])
        if number not in self._files:
            while len(self._files) >= _OPEN:
                self._files.pop(next(iter(self._files))).close()
            self._files[number] = Reader(self.folder / _name(number), WAY_OUT)
        return self._files[number], group - first


class Shards(Activations):
    """Activations that `write_sites` or `write_shards` wrote. A group is checked the first time it is read."""

    Options = ShardsOptions
    is_read_ahead = True

    def __init__(self, folder: str | Path, block: int = 256, sites: Sequence[str] | None = None) -> None:
        """sites: by default all that are there. ArtefactError where one of them is not, or not all of it."""
        self.folder = Path(folder)
        first, *more = [_Set(path) for path in _sets(self.folder)] or [_Set(self.folder)]
        if sites is None:
            sites = [site for one in (first, *(each for each in more if each.is_complete)) for site in one.sites]
        self._of = {site: _holding(self.folder, site, [first, *more]) for site in dict.fromkeys(sites)}
        shortest = min(self._of.values(), key=lambda one: len(one.rows_per_group))
        used = list(dict.fromkeys(self._of.values()))
        self.widths = {site: one.sites[site] for site, one in self._of.items()}
        self.dtype = DTYPES[shortest.index["dtype"]]
        self.rows_per_group = shortest.rows_per_group
        self.groups_per_block = max(1, block // shortest.index["batch"])
        digests = [str(one.index["digest"]) for one in used]
        self.digest = digests[0] if len(digests) == 1 else store.digest_json(sorted(digests))

    @classmethod
    def open(
        cls,
        config: ActivationsConfig,
        *,
        lm: LM | None = None,
        contexts: Contexts | None = None,
        folder: Path | None = None,
    ) -> Shards:
        """Writes what is missing, then reads; without a language model everything must be there."""
        assert folder is not None
        read_options(cls, config)
        if lm is not None and contexts is not None:
            write_sites(
                lambda sites: live_of(config, lm, contexts, sites), folder, config.sites, shard_mib=shard_mib(config)
            )
        return cls(folder, config.block, config.sites)

    @property
    def held_out(self) -> Shards | None:
        folder = self.folder / HELD_OUT
        return Shards(folder, sites=list(self.widths)) if (folder / INDEX).exists() else None

    def rows(self, group: int) -> dict[str, Tensor]:
        return {site: file.group(here, site) for site, (file, here) in self._find(group).items()}

    def gather(self, groups: Sequence[int]) -> dict[str, Tensor]:
        total = int(self.rows_per_group[groups].sum())
        block = {site: torch.empty(total, width, dtype=self.dtype) for site, width in self.widths.items()}
        done = 0
        for number, group in enumerate(groups):
            for later in groups[number + 1 : number + 1 + _SOON]:
                for site, (file, here) in self._find(later).items():
                    file.expect(here, site)
            found = self._find(group)
            rows = int(self.rows_per_group[group])
            for site, x in block.items():
                file, here = found[site]
                file.group(here, site, x[done : done + rows])
            done += rows
        return block

    def labels(self, group: int) -> dict[str, Tensor]:
        """int32 [n]: `token`, `document` and `position` of every row of a group."""
        file, here = next(iter(self._find(group).values()))
        return {key: file.group(here, key) for key in LABELS}

    def documents(self, group: int) -> np.ndarray:
        return self.labels(group)["document"].long().numpy()

    def _find(self, group: int) -> dict[str, tuple[Reader, int]]:
        """Per site the file that holds a group, and the group's number in it."""
        return {site: one.find(group) for site, one in self._of.items()}


def _sets(folder: Path) -> list[Path]:
    """The folder itself and those of sites that came later, where they have an index."""
    return [path.parent for path in (folder / INDEX, *sorted(folder.glob(f"{ALSO}/*/{INDEX}"))) if path.exists()]


def _holding(folder: Path, site: str, sets: Sequence[_Set]) -> _Set:
    """The complete set that holds a site, of several the longest."""
    holding = [one for one in sets if site in one.sites]
    whole = [one for one in holding if one.index["complete"]]
    if not holding:
        raise ArtefactError(f"{folder} holds no activations at {site}: `{MAKE}` writes them.")
    if not whole:
        files = len(holding[0].index["shards"])
        raise ArtefactError(
            f"{holding[0].folder} holds {holding[0].there} of {files} files of activations: `{MAKE}` writes the others."
        )
    return max(whole, key=lambda one: len(one.rows_per_group))


def live_of(config: ActivationsConfig, lm: LM, contexts: Contexts, sites: Sequence[str] | None = None) -> Live:
    """What is written; by default at all sites of the study."""
    return Live(lm, contexts, config.sites if sites is None else sites, config.dtype, config.block)


def shard_mib(config: ActivationsConfig) -> float:
    """About how large a study's files are."""
    return cast(ShardsOptions, read_options(Shards, config)).shard_mib


def missing(folder: Path, sites: Sequence[str], inputs_of: InputsOf) -> list[str]:
    """The sites of which not all activations of these inputs are there."""
    found: set[str] = set()
    for path in _sets(folder):
        with contextlib.suppress(ArtefactError):
            one = _Set(path)
            if one.is_complete and one.index["inputs"] == inputs_of(list(one.sites)):
                found |= one.sites.keys()
    return [site for site in sites if site not in found]


# ---------------------------------------------------------------------------------------------- writing


class _Layout(NamedTuple):
    """What a folder will hold, the same for every process."""

    live: Live
    parts: list[tuple[int, int]]
    """Groups [first, last) of every file."""
    columns: dict[str, Column]

    def rows(self, number: int) -> list[int]:
        """Of each group of a file."""
        first, last = self.parts[number]
        return self.live.rows_per_group[first:last].tolist()

    def bytes(self, number: int) -> int:
        """Of a file, without its header."""
        return sum(self.rows(number)) * sum(column.bytes for column in self.columns.values())

    def info(self, number: int) -> dict[str, Any]:
        """What a file says that it is."""
        return {"digest": self.live.digest, "groups": list(self.parts[number])}

    def head(self, inputs: str, *, complete: bool) -> dict[str, Any]:
        """activations.json."""
        return {
            "schema": SCHEMA, "digest": self.live.digest, "inputs": inputs, "contexts": self.live.contexts.digest,
            "sites": self.live.widths, "dtype": str(self.live.dtype).removeprefix("torch."),
            "batch": self.live.contexts.batch, "complete": complete, "shards": self.parts,
            "rows_per_group": self.live.rows_per_group.tolist(),
        }  # fmt: skip


def write_sites(
    live_of: Callable[[Sequence[str]], Live],
    folder: str | Path,
    sites: Sequence[str],
    inputs_of: InputsOf = lambda _: "",
    *,
    shard_mib: float = 256,
    part: Part = Part(),
    progress: Progress | None = None,
) -> bool:
    """Writes this process's part of what is missing at these sites; True where nothing is then. What is there stays.

    Each set of sites that is begun is finished as it is; sites that are in none make a set of their own, in the folder
    itself or, where that has one, below `also`. Raises what `write_shards` does.
    """
    folder, is_done, wanted = Path(folder), True, list(sites)
    todo: list[tuple[Path, Sequence[str]]] = []
    for path in _sets(folder):
        one = _Set(path)
        is_whole = one.is_complete and one.index["inputs"] == inputs_of(list(one.sites))
        if not one.sites.keys() & set(wanted) or not (is_whole or one.sites.keys() <= set(sites)):
            _require_alike(one, live_of(sites), inputs_of(list(one.sites)))
        else:
            wanted = [site for site in wanted if site not in one.sites]
            if not is_whole or one.sites.keys() <= set(sites):  # what can be compared with the LM is
                todo.append((path, list(one.sites)))
    if wanted:
        own = folder / ALSO / store.digest_json(sorted(wanted))[:12] if (folder / INDEX).exists() else folder
        todo.append((own, wanted))
    for path, here in todo:
        is_done &= write_shards(
            live_of(here), path, shard_mib=shard_mib, part=part, inputs=inputs_of(here), progress=progress
        )
    return is_done


def _require_alike(one: _Set, live: Live, inputs: str) -> None:
    """ArtefactError unless a set of other sites is of the same text, dtype and, as `inputs` tells, language model."""
    known = (live.contexts.digest, str(live.dtype).removeprefix("torch."), inputs)
    if (one.index["contexts"], one.index["dtype"], one.index["inputs"]) != known:
        raise _foreign(one.folder)


def _foreign(folder: Path) -> ArtefactError:
    return ArtefactError(
        f"{folder} holds activations of another model, text, site or dtype: remove the folder, and `{MAKE}` "
        "writes them again."
    )


def write_shards(
    live: Live,
    folder: str | Path,
    *,
    shard_mib: float = 256,
    part: Part = Part(),
    inputs: str = "",
    progress: Progress | None = None,
) -> bool:
    """Writes this process's part of the activations of every group; True where the whole folder is complete then.

    `inputs`: a digest by which `missing` knows the activations without a language model. StudyError where the disk
    has no room; ArtefactError where the folder holds activations of something else, or another process writes the same
    files.
    """
    folder, columns = Path(folder), {site: Column(live.dtype, (width,)) for site, width in live.widths.items()}
    columns |= dict.fromkeys(LABELS, Column(torch.int32))
    layout = _Layout(live, _partition(live, shard_mib), columns)
    with _claimed(folder, part):
        _begin(layout, folder, inputs)
        missing = [number for number in range(len(layout.parts)) if not _is_whole(layout, folder, number)]
        _check_room(folder, sum(map(layout.bytes, missing)), live)
        mine = [number for number in missing if part.has(number)]
        rows = {number: sum(layout.rows(number)) for number in range(len(layout.parts)) if part.has(number)}
        if mine:
            title = "activations" if part.of == 1 else f"activations, part {part}"
            total, left = sum(rows.values()), sum(rows[number] for number in mine)
            with (progress or Silent()).phase(title, total, "tokens", total - left) as phase:
                for number in mine:
                    _write(layout, folder, number, phase)
        is_done = all(_is_whole(layout, folder, number) for number in range(len(layout.parts)))
        if is_done:
            write_json(folder / INDEX, layout.head(inputs, complete=True), indent=None)
    return is_done


def _partition(live: Live, shard_mib: float) -> list[tuple[int, int]]:
    """Groups [first, last) of every shard: as many as fit, one at least."""
    row = row_bytes(live.widths.values(), live.dtype.itemsize)
    limit = shard_mib * 2**20
    parts: list[tuple[int, int]] = []
    first, size = 0, 0
    for group, rows in enumerate(live.rows_per_group):
        if group > first and size + int(rows) * row > limit:
            parts.append((first, group))
            first, size = group, 0
        size += int(rows) * row
    return [*parts, (first, len(live.rows_per_group))]


def _begin(layout: _Layout, folder: Path, inputs: str) -> None:
    """Writes an index that says "not complete", unless the right one is there; ArtefactError for a foreign folder."""
    fresh = layout.head(inputs, complete=False)
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX, SCHEMA, verb=MAKE)
        if index.get("digest") != layout.live.digest:
            raise _foreign(folder)
        if {**index, "complete": False} == {**fresh, "shards": [list(part) for part in layout.parts]}:
            return
    write_json(folder / INDEX, fresh, indent=None)


@contextlib.contextmanager
def _claimed(folder: Path, part: Part) -> Iterator[None]:
    """No other process writes the same files meanwhile: not this part, and none of another number of parts."""
    name = "part-{}-of-{}.lock"
    with store.locked(folder / name.format(*part), folder):
        for other in sorted(folder.glob(name.format("*", "*"))):
            is_beside = other.name.endswith(f"-of-{part.of}.lock")
            if not is_beside and store.is_locked(other):
                raise ArtefactError(
                    f"{folder} is being written in another number of parts ({other.stem.removeprefix('part-')}): wait "
                    f"for that, or call this --shard I/{other.stem.rpartition('-')[2]}."
                )
        yield


def _is_whole(layout: _Layout, folder: Path, number: int) -> bool:
    """Whether a file is there, with these groups of these activations, and not torn."""
    try:
        with Reader(folder / _name(number)) as file:
            return file.info == layout.info(number)
    except ArtefactError:
        return False


def _check_room(folder: Path, needed: int, live: Live) -> None:
    """StudyError in one sentence unless the disk has room for what is missing."""
    free = store.free_bytes(folder)
    if needed > free:
        dtype = str(live.dtype).removeprefix("torch.")
        raise StudyError(
            f"{folder} has {formatting.size(free)} of free disk, and the missing activations need {formatting.size(needed)} "
            f"({int(live.rows_per_group.sum()):,} tokens at {', '.join(live.widths)} in {dtype}): "
            f"{ways_to_fit(len(live.widths), dtype)}."
        )


def _write(layout: _Layout, folder: Path, number: int, phase: Phase) -> None:
    """Writes one file."""
    store.remove_temporaries_of(folder / _name(number))  # of a killed process; nobody else writes this file

    def groups() -> Iterator[Mapping[str, Tensor]]:
        for group in range(*layout.parts[number]):
            labels = {key: torch.from_numpy(value) for key, value in layout.live.contexts.labels(group).items()}
            yield {**layout.live.rows(group), **labels}
            phase.advance(int(layout.live.rows_per_group[group]))

    on_cpu = ({key: value.cpu() for key, value in tensors.items()} for tensors in groups())
    write(folder / _name(number), layout.columns, layout.rows(number), on_cpu, layout.info(number))


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


Origin = Shards
