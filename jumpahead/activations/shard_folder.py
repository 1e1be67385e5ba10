"""A folder of activations on disk: its index, and the file that holds each group of rows.

activations.json             digests, sites, dtype, and the groups of each file; says whether all files are complete
shard-00000.safetensors      whole groups: a tensor [rows, d] per site, and the labels `token`, `document` (index of the
                             document in the contexts) and `position`, int32 [rows] each; see row_files.py
added_sites/NAME/            the same files for sites that were added later; existing files are not rewritten
held_out/                    the same files for the held-out text, for evaluation without the language model
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

InputsDigestFunction = Callable[[Sequence[str]], str]
"""Function from sites to the digest of the inputs of their activations, computed without loading the LM."""


class ShardFolder:
    """The index and the files of one folder. Every file holds the same sites."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_json(folder / INDEX, SCHEMA, made_by=HARVEST_COMMAND)
        self.rows_per_group = np.array(self.index["rows_per_group"], dtype=np.int64)
        self._first_groups = np.array([first for first, _ in self.index["shards"]])
        self._files: dict[int, RowFileReader] = {}

    @property
    def sites(self) -> dict[str, int]:
        """Return d of every site, by site."""
        return {str(site): int(width) for site, width in self.index["sites"].items()}

    @property
    def files_present(self) -> int:
        """Return the number of the folder's files that exist."""
        return sum((self.folder / shard_name(number)).is_file() for number in range(len(self.index["shards"])))

    @property
    def is_complete(self) -> bool:
        """Return True if all files were written and still exist."""
        return bool(self.index["complete"]) and self.files_present == len(self.index["shards"])

    def find(self, group: int) -> tuple[RowFileReader, int]:
        """Return the open file that holds a group of rows, and the group's number within that file."""
        number = int(np.searchsorted(self._first_groups, group, side="right")) - 1
        first = int(self._first_groups[number])
        if number not in self._files:
            while len(self._files) >= _MAX_OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[number] = RowFileReader(self.folder / shard_name(number), REMEDY, is_own=True)
        return self._files[number], group - first


def shard_folders(folder: Path) -> list[Path]:
    """Return `folder` and the folders of sites that were added later, if they have an index."""
    added = sorted(folder.glob(f"{ADDED_SITES_FOLDER}/*/{INDEX}"))
    return [path.parent for path in (folder / INDEX, *added) if path.exists()]


def find_shard_folder(folder: Path, site: str, candidates: Sequence[ShardFolder]) -> ShardFolder:
    """Return the complete shard folder that holds a site; if several do, the folder with the most groups.

    candidates: the folders to choose from. folder: the path that error messages name. Raises ArtefactError if no
    candidate holds the site, or if no candidate that holds the site is complete.
    """
    holding = [shards for shards in candidates if site in shards.sites]
    complete = [shards for shards in holding if shards.index["complete"]]
    if not holding:
        raise ArtefactError(f"{folder} holds no activations at {site}: `{HARVEST_COMMAND}` writes them.")
    if not complete:
        present, files = holding[0].files_present, len(holding[0].index["shards"])
        raise ArtefactError(
            f"{holding[0].folder} holds {present} of {files} files of activations: `{HARVEST_COMMAND}` writes the rest."
        )
    return max(complete, key=lambda shards: len(shards.rows_per_group))


def missing_sites(folder: Path, sites: Sequence[str], inputs_digest_of: InputsDigestFunction) -> list[str]:
    """Return the sites whose activations, with the digest from `inputs_digest_of`, are not complete in `folder`."""
    complete: set[str] = set()
    for path in shard_folders(folder):
        with contextlib.suppress(ArtefactError):
            shards = ShardFolder(path)
            if shards.is_complete and shards.index["inputs"] == inputs_digest_of(list(shards.sites)):
                complete |= shards.sites.keys()
    return [site for site in sites if site not in complete]


def shard_name(number: int) -> str:
    """Return the name of the file with this number, counted from 0."""
    return f"shard-{number:05d}.safetensors"
