"""The interface of every origin of activations: rows, group by group, and their scale.

    n, d      rows (activations) of a group, width of a site

A group is what is computed or read at once, for instance the contexts of one LM batch. Rows are in the language model's
own unit; dividing by `Scale.C` makes E‖x‖² = 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
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
"""Dtypes of activations that were computed elsewhere."""


class OriginOptions(BaseModel):
    """The options of an origin, `activations.options` in the study; none by default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Activations(ABC):
    """The activations of every group at every site. The rows of group g are a function of g alone."""

    Options: ClassVar[type[OriginOptions]] = OriginOptions
    needs_lm: ClassVar[bool] = True
    """False for an origin without a language model: sites may have any name, SAEs are evaluated by FVU alone."""
    on_disk: ClassVar[bool] = False
    """True if a stage of the run writes the language model's activations to disk before training."""

    dtype: torch.dtype
    """The dtype that rows are rounded to."""
    widths: dict[str, int]
    """d of every site, by its key, in the study's order."""
    rows_per_group: np.ndarray
    """int64 [groups]; known without running the language model."""
    groups_per_block: int
    """Groups whose rows are shuffled together."""
    prefetches_in_thread: bool = False
    """True if a stream reads the next block in another thread while SAEs train on the current one."""
    device: torch.device = torch.device("cpu")
    """The device of the rows. On a GPU, a stream launches the next block's groups concurrently with the training."""
    digest: str
    """SHA-256 of everything that determines the rows; origins that give the same bytes have the same digest."""

    @property
    def overlaps_training(self) -> bool:
        """Return whether rows are computed concurrently with the training, so that their time is not added to it."""
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
        """Return the activations that a study asks for; `folder` is where an origin stores them, if it does.

        `lm` and `contexts` are given if the origin `needs_lm`.
        """

    @abstractmethod
    def rows(self, group: int) -> dict[str, Tensor]:
        """Return the activations [n, d] of a group at every site, in the study's dtype.

        Raises DataError, naming group and document, if a value is not finite.
        """

    def gather(self, groups: Sequence[int]) -> dict[str, Tensor]:
        """Return the activations [rows, d] of several groups, concatenated, at every site."""
        return concatenate_groups((self.rows(group) for group in groups), int(self.rows_per_group[groups].sum()))

    @classmethod
    def source_digest(cls, config: ActivationsConfig, folder: Path | None = None) -> str:
        """Return the digest of the data that an origin without LM reads; empty if its options determine them."""
        return ""

    @property
    def held_out(self) -> Activations | None:
        """Return the activations that no SAE is trained on; None unless SAEs can be evaluated on them without a LM."""
        return None

    def document_ids(self, group: int) -> np.ndarray:
        """Return the document number of every row of a group, [n] int64; the bootstrap resamples documents."""
        return np.full(int(self.rows_per_group[group]), group)

    def launch_rows(self, group: int) -> Callable[[], dict[str, Tensor]]:
        """Start computing a group's rows without waiting for the GPU; return a function that waits for them."""
        return lambda: self.rows(group)

    @property
    def total_rows(self) -> int:
        """Return the number of rows in all groups, which is that of distinct training tokens."""
        return int(self.rows_per_group.sum())


def concatenate_groups(parts: Iterable[Mapping[str, Tensor]], total: int) -> dict[str, Tensor]:
    """Return the rows of several groups, concatenated: [total, d] at every site."""
    block: dict[str, Tensor] = {}
    done = 0
    for part in parts:
        for site, x in part.items():
            if site not in block:
                block[site] = x.new_empty(total, x.shape[1])
            block[site][done : done + len(x)] = x
        done += len(next(iter(part.values())))
    return block


def parse_options(origin: type[Activations], config: ActivationsConfig) -> OriginOptions:
    """Return the options of an origin. Those of a study are validated when it is loaded (study/resolve.py)."""
    return origin.Options.model_validate(config.options)


def find_non_finite(rows: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Return the site and the row of the first value that is not finite, or None."""
    for site, value in rows.items():
        finite = torch.isfinite(value)
        if not bool(finite.all()):
            return site, int((~finite).any(1).nonzero()[0])
    return None
