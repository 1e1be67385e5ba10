"""The interface of every origin of activations: rows, group by group.

    n, d      rows (activations) of a group, width of a site

A group is a set of rows that are computed or read together, for instance the contexts of one LM batch. Rows are in the
language model's own unit; `sae.unit.Unit` changes them into the unit of training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

if TYPE_CHECKING:
    from jumpahead.activations.config import ActivationsConfig
    from jumpahead.lm.model import LM
    from jumpahead.text.contexts import Contexts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Accepted dtypes of activations that the user provides."""


class OriginOptions(BaseModel):
    """Base class of an origin's options (`activations.options` in the study), without any option."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Activations(ABC):
    """Base class of origins: the activations of every group of rows at every site. Group g's rows depend on g alone."""

    Options: ClassVar[type[OriginOptions]] = OriginOptions
    """The class of this origin's options."""
    needs_lm: ClassVar[bool] = True
    """False if the origin uses no language model. Sites may then have any name, and LM loss is not evaluated."""
    on_disk: ClassVar[bool] = False
    """True if the run writes the language model's activations to disk before training."""

    dtype: torch.dtype
    """The dtype that rows are rounded to."""
    widths: dict[str, int]
    """d of every site, by canonical site name, in the study's order."""
    rows_per_group: np.ndarray
    """int64 [groups]: number of rows of each group, known without running the language model."""
    groups_per_block: int
    """Number of groups in a block; the rows of a block are shuffled together."""
    prefetches_in_thread: bool = False
    """True if a stream reads the next block in another thread while SAEs train on the current block."""
    device: torch.device = torch.device("cpu")
    """The device of the rows. On a GPU, the next block's groups are computed on a second GPU stream during training."""
    dictionary: Mapping[str, Tensor] = MappingProxyType({})
    """float32 [features, d] with unit rows, by site: the directions that rows are made of, if they are known."""
    digest: str
    """SHA-256 of all inputs that determine the rows. `live` and `shards` have equal digests for equal rows."""

    @property
    def overlaps_training(self) -> bool:
        """Return True if rows are read or computed concurrently with training, in a thread or on a GPU stream."""
        return self.prefetches_in_thread or self.device.type == "cuda"

    @classmethod
    @abstractmethod
    def open(
        cls,
        config: ActivationsConfig,
        *,
        lm: LM | None = None,
        contexts: Contexts | None = None,
        folder: Path | None = None,
    ) -> Activations:
        """Return the activations for a study's `[activations]` table.

        lm, contexts: given if the origin has `needs_lm`. folder: the folder in which the origin may store activations.
        """

    @abstractmethod
    def rows(self, group: int) -> dict[str, Tensor]:
        """Return the activations [n, d] of a group at every site, by site, in `dtype`.

        Raises DataError, naming the position of the row, if a value is not finite.
        """

    def gather(self, groups: Sequence[int]) -> dict[str, Tensor]:
        """Return the activations [total rows, d] of several groups, concatenated, by site."""
        return concatenate_groups((self.rows(group) for group in groups), int(self.rows_per_group[groups].sum()))

    @classmethod
    def source_digest(cls, config: ActivationsConfig, folder: Path | None = None) -> str:
        """Return the digest of the files that the origin reads; "" if the study determines the activations."""
        return ""

    @property
    def held_out(self) -> Activations | None:
        """Return the held-out activations for evaluation without a language model; None if the origin has none."""
        return None

    def feature_activations(self, group: int) -> dict[str, Tensor]:
        """Return the true activations of the features of `dictionary` on a group's rows: [n, features] by site.

        Empty if they are not known.
        """
        return {}

    def document_ids(self, group: int) -> np.ndarray:
        """Return the document index of every row of a group, [n] int64. By default each group is one document."""
        return np.full(int(self.rows_per_group[group]), group)

    def launch_rows(self, group: int) -> Callable[[], dict[str, Tensor]]:
        """Start computing a group's rows on the GPU; return a function that waits for the rows and returns them."""
        return lambda: self.rows(group)

    @property
    def total_rows(self) -> int:
        """Return the number of rows in all groups, which equals the number of distinct training tokens."""
        return int(self.rows_per_group.sum())


def concatenate_groups(groups: Iterable[Mapping[str, Tensor]], total: int) -> dict[str, Tensor]:
    """Return the rows of several groups, concatenated: [total, d] by site. total: the number of rows of all groups."""
    block: dict[str, Tensor] = {}
    done = 0
    for rows_at in groups:
        for site, x in rows_at.items():
            if site not in block:
                block[site] = x.new_empty(total, x.shape[1])
            block[site][done : done + len(x)] = x
        done += len(next(iter(rows_at.values())))
    return block


def parse_options(origin: type[Activations], config: ActivationsConfig) -> OriginOptions:
    """Return `config.options` as the origin's options. Raises pydantic.ValidationError if they are not valid."""
    return origin.Options.model_validate(config.options)


def find_non_finite(rows: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Return (site, row index) of the first value that is NaN or infinite; None if all values are finite."""
    for site, value in rows.items():
        finite = torch.isfinite(value)
        if not bool(finite.all()):
            return site, int((~finite).any(1).nonzero()[0])
    return None
