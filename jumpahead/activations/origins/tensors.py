"""Activations from user files, for instance of image, audio or protein models. No language model.

    source            an .npy file, a .safetensors file, or a folder of such files (all of one type), sorted by name;
                      if empty, the files that `jumpahead.train_on` wrote to the run's folder
    rows              [rows, d] in each file: one array, or a tensor per site of the study
    group             `rows_per_group` consecutive rows of a file; a hash of the group's number decides if the group
                      is held out; in the evaluation each group counts as one document

Files are read in place. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from pydantic import Field
from torch import Tensor

from jumpahead.activations.base import DTYPES, Activations, OriginOptions, find_non_finite, parse_options
from jumpahead.activations.config import ActivationsConfig
from jumpahead.activations.held_out_groups import is_group_held_out
from jumpahead.activations.tensor_files import open_tensor_file, row_count, tensor_key, tensor_paths, tensor_width
from jumpahead.activations.tensor_writer import read_index
from jumpahead.errors import DataError
from jumpahead.lm.model import LM
from jumpahead.storage.digests import digest_json
from jumpahead.text.contexts import Contexts


class TensorsOptions(OriginOptions):
    """Options of the origin `tensors`."""

    source: str = ""
    """An .npy or .safetensors file, or a folder of them; empty for the tensors that `train_on` was given."""
    rows_per_group: int = Field(default=256, ge=1)
    """Rows of a group. Rows that belong together, such as the patches of an image, should be in one group."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the groups that SAEs are never trained on; they are evaluated on these alone."""


class Tensors(Activations):
    """Groups of consecutive rows of the user's files."""

    Options = TensorsOptions
    needs_lm = False
    prefetches_in_thread = True

    def __init__(self, config: ActivationsConfig, folder: Path | None = None) -> None:
        options = cast(TensorsOptions, parse_options(Tensors, config))
        self._files = [open_tensor_file(path) for path in _paths(options, folder)]
        self.dtype = DTYPES[config.dtype]
        self._keys = {site: tensor_key(self._files[0], site, len(config.sites)) for site in config.sites}
        self.widths = {site: tensor_width(self._files, key) for site, key in self._keys.items()}
        counts = [row_count(file, self._keys.values()) for file in self._files]
        groups = [
            _RowLocation(file, start, min(start + options.rows_per_group, count))
            for file, count in enumerate(counts)
            for start in range(0, count, options.rows_per_group)
        ]
        split = [is_group_held_out(number, options.held_out) for number in range(len(groups))]
        self._groups = [group for group, is_out in zip(groups, split, strict=True) if not is_out]
        self._held_out_groups = [group for group, is_out in zip(groups, split, strict=True) if is_out]
        for chosen, purpose in ((self._groups, "to train on"), (self._held_out_groups, "held out")):
            if not chosen:
                raise DataError(
                    f"{options.source or 'what train_on was given'} holds {sum(counts):,} rows in {len(groups)} groups,"
                    f" and none is {purpose}: give more rows, smaller groups (activations.options.rows_per_group), or"
                    " another activations.options.held_out."
                )
        self.rows_per_group = _group_sizes(self._groups)
        self.groups_per_block = config.block
        known = options.model_dump(exclude={"source"})
        self.digest = digest_json(["tensors", self.source_digest(config, folder), known, self.widths, config.dtype])

    @classmethod
    def open(
        cls,
        config: ActivationsConfig,
        *,
        lm: LM | None = None,
        contexts: Contexts | None = None,
        folder: Path | None = None,
    ) -> Tensors:
        return cls(config, folder)

    @classmethod
    def source_digest(cls, config: ActivationsConfig, folder: Path | None = None) -> str:
        """Return the digest of the files' names, sizes and modification times.

        For files that `write_iterator` wrote, return the digest of their index, which has checksums.
        """
        options = cast(TensorsOptions, parse_options(cls, config))
        if not options.source:
            assert folder is not None
            return digest_json(read_index(folder))
        stats = [(path.name, path.stat()) for path in _paths(options, folder)]
        return digest_json([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    @property
    def held_out(self) -> Tensors:
        """Return the activations of the held-out groups."""
        others = copy(self)
        others._groups, others._held_out_groups = self._held_out_groups, []
        others.rows_per_group = _group_sizes(self._held_out_groups)
        others.digest = digest_json([self.digest, "held out"])
        return others

    def rows(self, group: int) -> dict[str, Tensor]:
        file, start, stop = self._groups[group]
        rows = {site: self._files[file].read_rows(start, stop, key).to(self.dtype) for site, key in self._keys.items()}
        if bad := find_non_finite(rows):
            site, row = bad
            raise DataError(
                f"row {start + row:,} of {self._files[file].path} holds a value that is not finite in {site} as "
                f"{str(self.dtype).removeprefix('torch.')}: leave the row out, or use activations.dtype = 'float32'."
            )
        return rows


class _RowLocation(NamedTuple):
    """The rows [start, stop) of the file with number `file`."""

    file: int
    start: int
    stop: int


def _paths(options: TensorsOptions, folder: Path | None) -> list[Path]:
    """Return the paths of the files, sorted; if `source` is empty, of the files of `write_iterator` in `folder`."""
    if options.source:
        return tensor_paths(options.source)
    assert folder is not None
    return [folder / name for name in read_index(folder)["files"]]


def _group_sizes(groups: Sequence[_RowLocation]) -> np.ndarray:
    """Return the number of rows of every group, int64."""
    return np.array([group.stop - group.start for group in groups], dtype=np.int64)


Origin = Tensors
