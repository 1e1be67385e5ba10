"""What every origin of activations offers: rows, group by group, and their scale.

    n, d      rows (activations) of a group, width of a site

Rows are in the language model's own unit here; the stream divides nothing. `Scale.C` is what makes E‖x/C‖² = 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from jumpahead.errors import DataError, StudyError

if TYPE_CHECKING:
    from jumpahead.activations import ActivationsConfig
    from jumpahead.lm.model import LM
    from jumpahead.text.contexts import Contexts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Options(BaseModel):
    """The settings of an origin's own, `activations.options` in the study; by default it has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Activations(ABC):
    """The activations of every group of contexts at every site. Group g's rows depend on nothing but g."""

    Options: ClassVar[type[Options]] = Options

    dtype: torch.dtype
    """What rows are kept in."""
    widths: dict[str, int]
    """d of every site, by its key, in the study's order."""
    rows_per_group: np.ndarray
    """int64 [groups]: known without running the language model."""
    groups_per_block: int
    """How many groups a study shuffles together."""
    is_read_ahead: bool = False
    """Whether a stream reads the next block in another thread while SAEs train on this one."""
    device: torch.device = torch.device("cpu")
    """Where rows are. On a GPU a stream launches the next block's groups beside the training on this one."""
    digest: str
    """SHA-256 of everything that decides the rows; the same for origins that give the same bytes."""

    @property
    def is_beside(self) -> bool:
        """Whether rows are made beside the training: what that takes is not added to the training's time then."""
        return self.is_read_ahead or self.device.type == "cuda"

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
        """The activations that a study asks for; what has to be kept on disk is kept in `folder`.

        `lm` and `contexts` are given where the origin is not in `activations.WITHOUT_LM`. Raises StudyError where
        `config.options` holds something that this origin does not know.
        """

    @abstractmethod
    def rows(self, group: int) -> dict[str, Tensor]:
        """The activations [n, d] of a group at every site, in the study's dtype.

        Raises DataError naming group and document where one is not finite.
        """

    def gather(self, groups: Sequence[int]) -> dict[str, Tensor]:
        """[rows, d] of several groups, one after the other, at every site."""
        return gathered((self.rows(group) for group in groups), int(self.rows_per_group[groups].sum()))

    @classmethod
    def source(cls, config: ActivationsConfig, folder: Path | None = None) -> str:
        """Digest of what an origin without a language model reads; empty where its options say everything."""
        return ""

    @property
    def held_out(self) -> Activations | None:
        """Activations of the same kind that no SAE is trained on: what is measured where there is no LM."""
        return None

    def documents(self, group: int) -> np.ndarray:
        """Whole numbers [n]: what every row of a group is a part of (by default the group), resampled as a whole."""
        return np.full(int(self.rows_per_group[group]), group)

    def begin(self, group: int) -> Callable[[], dict[str, Tensor]]:
        """Begin to make a group's rows, without waiting for a GPU; what is returned waits, and gives them as `rows`."""
        return lambda: self.rows(group)

    @property
    def total(self) -> int:
        """Rows of all groups: the distinct training tokens."""
        return int(self.rows_per_group.sum())


def gathered(parts: Iterable[Mapping[str, Tensor]], total: int) -> dict[str, Tensor]:
    """[total, d] at every site: the rows of several groups, one after the other."""
    block: dict[str, Tensor] = {}
    done = 0
    for part in parts:
        for site, x in part.items():
            if site not in block:
                block[site] = x.new_empty(total, x.shape[1])
            block[site][done : done + len(x)] = x
        done += len(next(iter(part.values())))
    return block


def read_options(origin: type[Activations], config: ActivationsConfig) -> Options:
    """The checked options; StudyError in one sentence naming the key."""
    try:
        return origin.Options.model_validate(config.options)
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ", ".join(origin.Options.model_fields) or "none"
        raise StudyError(f"activations.options.{key}: {first['msg']}; '{config.origin}' knows {known}.") from exc


class Scale(NamedTuple):
    """The unit of a site."""

    C: float
    """√(mean ‖x‖²): activations divided by it have mean square norm 1."""
    mean: Tensor
    """float32 [d]: the mean activation, in the language model's unit."""


def scale(activations: Activations, n_rows: int) -> dict[str, Scale]:
    """Scale and mean of every site, over whole groups 0, 1, … until there are `n_rows` rows; sums in float64."""
    square = dict.fromkeys(activations.widths, 0.0)
    total = {site: torch.zeros(width, dtype=torch.float64) for site, width in activations.widths.items()}
    count = 0
    for group in range(len(activations.rows_per_group)):
        if count >= n_rows:
            break
        for site, rows in activations.rows(group).items():
            exact = rows.to(device="cpu", dtype=torch.float64)
            square[site] += float(exact.square().sum())
            total[site] += exact.sum(0)
        count += int(activations.rows_per_group[group])
    for site, value in square.items():
        if not value > 0:
            raise DataError(f"the activations at {site} are all zero ({count} rows): nothing can be learned there.")
    return {site: Scale((square[site] / count) ** 0.5, (total[site] / count).float()) for site in square}


def not_finite(rows: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """The site and the row of the first value that is not finite, if there is one."""
    for site, value in rows.items():
        finite = torch.isfinite(value)
        if not bool(finite.all()):
            return site, int((~finite).any(1).nonzero()[0])
    return None
