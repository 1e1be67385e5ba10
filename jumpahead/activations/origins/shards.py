"""Activations on disk: written once, by any number of processes, and read for any number of SAEs and runs.

The origin `live` gives the same bytes. `shard_folder.py` describes the files, `shard_writer.py` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from jumpahead.activations.base import DTYPES, Activations, OriginOptions, parse_options
from jumpahead.activations.config import ActivationsConfig
from jumpahead.activations.origins.live import Live
from jumpahead.activations.row_files import RowFileReader
from jumpahead.activations.shard_folder import (
    HELD_OUT_FOLDER,
    INDEX,
    LABELS,
    ShardFolder,
    find_shard_folder,
    shard_folders,
)
from jumpahead.activations.shard_writer import SHARD_MIB, write_missing_sites
from jumpahead.lm.model import LM
from jumpahead.storage.digests import digest_json
from jumpahead.text.contexts import Contexts

_GROUPS_ADVISED = 4  # groups that the operating system is asked to read in advance


class ShardsOptions(OriginOptions):
    """Options of the origin `shards`."""

    shard_mib: float = Field(default=SHARD_MIB, gt=0)
    """Approximate size of a file in MiB."""


class Shards(Activations):
    """Activations that were written to disk. A group's checksum is verified when the group is first read."""

    Options = ShardsOptions
    on_disk = True
    prefetches_in_thread = True

    def __init__(self, folder: str | Path, block: int = 256, sites: Sequence[str] | None = None) -> None:
        """Open a folder of activations.

        block: contexts that are shuffled together. sites: by default all sites of the folder that are complete. Raises
        ArtefactError if the activations of a site are missing or incomplete.
        """
        self.folder = Path(folder)
        first, *added = [ShardFolder(path) for path in shard_folders(self.folder)] or [ShardFolder(self.folder)]
        if sites is None:
            sites = [site for shards in (first, *(each for each in added if each.is_complete)) for site in shards.sites]
        self._folders = {site: find_shard_folder(self.folder, site, [first, *added]) for site in dict.fromkeys(sites)}
        shortest = min(self._folders.values(), key=lambda shards: len(shards.rows_per_group))
        used = list(dict.fromkeys(self._folders.values()))
        self.widths = {site: shards.sites[site] for site, shards in self._folders.items()}
        self.dtype = DTYPES[shortest.index["dtype"]]
        self.rows_per_group = shortest.rows_per_group
        self.groups_per_block = max(1, block // shortest.index["contexts_per_group"])
        digests = [str(shards.index["digest"]) for shards in used]
        self.digest = digests[0] if len(digests) == 1 else digest_json(sorted(digests))

    @classmethod
    def open(
        cls,
        config: ActivationsConfig,
        *,
        lm: LM | None = None,
        contexts: Contexts | None = None,
        folder: Path | None = None,
    ) -> Shards:
        """Return the activations; write missing activations first if `lm` and `contexts` are given."""
        assert folder is not None
        shard_mib = cls.shard_mib(config)
        if lm is not None and contexts is not None:
            write_missing_sites(
                lambda sites: Live.from_config(config, lm, contexts, sites), folder, config.sites, shard_mib=shard_mib
            )
        return cls(folder, config.block, config.sites)

    @staticmethod
    def shard_mib(config: ActivationsConfig) -> float:
        """Return the study's option `shard_mib`: the approximate size of a file in MiB."""
        return cast(ShardsOptions, parse_options(Shards, config)).shard_mib

    @property
    def held_out(self) -> Shards | None:
        """Return the activations of the held-out text; None if they were not written."""
        folder = self.folder / HELD_OUT_FOLDER
        return Shards(folder, sites=list(self.widths)) if (folder / INDEX).exists() else None

    def rows(self, group: int) -> dict[str, Tensor]:
        return {site: file.read_group(number, site) for site, (file, number) in self._find(group).items()}

    def gather(self, groups: Sequence[int]) -> dict[str, Tensor]:
        total = int(self.rows_per_group[groups].sum())
        block = {site: torch.empty(total, width, dtype=self.dtype) for site, width in self.widths.items()}
        done = 0
        for position, group in enumerate(groups):
            for later in groups[position + 1 : position + 1 + _GROUPS_ADVISED]:
                for site, (file, number) in self._find(later).items():
                    file.advise_read(number, site)
            location = self._find(group)
            rows = int(self.rows_per_group[group])
            for site, x in block.items():
                file, number = location[site]
                file.read_group(number, site, x[done : done + rows])
            done += rows
        return block

    def labels(self, group: int) -> dict[str, Tensor]:
        """Return `token`, `document` and `position` of every row of a group, int32 [n] each."""
        file, number = next(iter(self._find(group).values()))
        return {key: file.read_group(number, key) for key in LABELS}

    def document_ids(self, group: int) -> np.ndarray:
        return self.labels(group)["document"].long().numpy()

    def _find(self, group: int) -> dict[str, tuple[RowFileReader, int]]:
        """Return the open file that holds a group and the group's number within that file, by site."""
        return {site: shards.find(group) for site, shards in self._folders.items()}


Origin = Shards
