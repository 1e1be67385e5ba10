"""A folder of activations on disk: its index, and which file holds which group.

activations.json             digests, sites, dtype, and the groups of each file; says whether all files are complete
shard-00000.safetensors      whole groups: one tensor [rows, d] per site, and beside them int32 [rows] `token`,
                             `document` (an index into the contexts' documents) and `position`; see row_files.py
added_sites/NAME/            the same for sites that were added later; nothing that exists is written again
held_out/                    the same for the held-out text: SAEs are evaluated on it without the language model
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jumpahead.activations.row_files import RowFileReader
from jumpahead.errors import ArtefactError
from jumpahead.storage.json_files import read_json

SCHEMA = "jumpahead.activations/3"
INDEX = "activations.json"
HELD_OUT_FOLDER = "held_out"
ADDED_SITES_FOLDER = "added_sites"
LABELS = ("token", "document", "position")
HARVEST_COMMAND = "jumpahead harvest"
REMEDY = f"remove it, and `{HARVEST_COMMAND}` writes it again"
_MAX_OPEN_FILES = 64

InputsOf = Callable[[Sequence[str]], str]
"""Returns, for some sites, the digest that identifies their activations without loading a language model."""


class ShardFolder:
    """The files of one folder; all hold the same sites."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_json(folder / INDEX, SCHEMA, made_by=HARVEST_COMMAND)
        self.rows_per_group = np.array(self.index["rows_per_group"], dtype=np.int64)
        self._first_groups = np.array([first for first, _ in self.index["shards"]])
        self._files: dict[int, RowFileReader] = {}

    @property
    def sites(self) -> dict[str, int]:
        """Return d of every site."""
        return {str(site): int(width) for site, width in self.index["sites"].items()}

    @property
    def files_present(self) -> int:
        """Return how many of its files exist."""
        return sum((self.folder / shard_name(number)).is_file() for number in range(len(self.index["shards"])))

    @property
    def is_complete(self) -> bool:
        """Return whether all files were written and still exist."""
        return bool(self.index["complete"]) and self.files_present == len(self.index["shards"])

    def find(self, group: int) -> tuple[RowFileReader, int]:
        """Return the open file that holds a group, and the group's number within the file."""
        number = int(np.searchsorted(self._first_groups, group, side="right")) - 1
        first = int(self._first_groups[number])
        if number not in self._files:
            while len(self._files) >= _MAX_OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[number] = RowFileReader(self.folder / shard_name(number), REMEDY)
        return self._files[number], group - first


def shard_folders(folder: Path) -> list[Path]:
    """Return the folder itself and those of sites that were added later, as far as they have an index."""
    added = sorted(folder.glob(f"{ADDED_SITES_FOLDER}/*/{INDEX}"))
    return [path.parent for path in (folder / INDEX, *added) if path.exists()]


def find_shard_folder(folder: Path, site: str, candidates: Sequence[ShardFolder]) -> ShardFolder:
    """Return the complete candidate that holds a site; of several, the one with most groups.

    Raises ArtefactError if none holds the site, or none of those is complete. folder: the one that errors name.
    """
    holding = [one for one in candidates if site in one.sites]
    complete = [one for one in holding if one.index["complete"]]
    if not holding:
        raise ArtefactError(f"{folder} holds no activations at {site}: `{HARVEST_COMMAND}` writes them.")
    if not complete:
        present, files = holding[0].files_present, len(holding[0].index["shards"])
        raise ArtefactError(
            f"{holding[0].folder} holds {present} of {files} files of activations: `{HARVEST_COMMAND}` writes the rest."
        )
    return max(complete, key=lambda one: len(one.rows_per_group))


def missing_sites(folder: Path, sites: Sequence[str], inputs_of: InputsOf) -> list[str]:
    """Return the sites whose activations, from these inputs, are not complete in `folder`."""
    found: set[str] = set()
    for path in shard_folders(folder):
        with contextlib.suppress(ArtefactError):
            one = ShardFolder(path)
            if one.is_complete and one.index["inputs"] == inputs_of(list(one.sites)):
                found |= one.sites.keys()
    return [site for site in sites if site not in found]


def shard_name(number: int) -> str:
    """Return the name of a file, by its number from 0."""
    return f"shard-{number:05d}.safetensors"
