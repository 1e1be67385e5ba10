"""Divide the files of activations among writing processes, and lock each process's files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jumpahead.errors import ArtefactError, StudyError
from jumpahead.storage.locks import hold_lock, is_locked


class WriterRank(NamedTuple):
    """The number of a process among the processes that write the same folder (`--shard I/N`)."""

    number: int = 1
    """Number of this process, from 1."""
    processes: int = 1
    """Total number of processes."""

    @classmethod
    def parse(cls, text: str) -> WriterRank:
        """Parse a rank such as `2/4`. Raises StudyError if the text is not I/N with 1 ≤ I ≤ N."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        rank = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= rank.number <= rank.processes:
            raise StudyError(f"--shard {text}: write it as I/N with I from 1 to N, for instance --shard 2/4.")
        return rank

    def __str__(self) -> str:
        return f"{self.number}/{self.processes}"

    def writes(self, shard: int) -> bool:
        """Return True if this process writes the file with number `shard`, counted from 0."""
        return shard % self.processes == self.number - 1


@contextlib.contextmanager
def lock_shards(folder: Path, rank: WriterRank) -> Iterator[None]:
    """Hold the lock on the files that a process writes until the `with` block ends.

    Raises ArtefactError if another process with the same rank, or with another number of processes, holds a lock.
    """
    name = "part-{}-of-{}.lock"
    with hold_lock(folder / name.format(*rank), folder):
        for other in sorted(folder.glob(name.format("*", "*"))):
            has_same_division = other.name.endswith(f"-of-{rank.processes}.lock")
            if not has_same_division and is_locked(other):
                raise ArtefactError(
                    f"{folder} is being written in another number of parts ({other.stem.removeprefix('part-')}): wait "
                    f"for that, or call this --shard I/{other.stem.rpartition('-')[2]}."
                )
        yield
