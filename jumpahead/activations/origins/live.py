"""Activations computed by the language model while SAEs are trained on them; nothing is written to disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jumpahead.activations.base import DTYPES, Activations, find_non_finite, parse_options
from jumpahead.activations.config import ActivationsConfig
from jumpahead.errors import DataError
from jumpahead.lm.model import LM
from jumpahead.lm.sites import parse_site
from jumpahead.storage.digests import digest_json
from jumpahead.text.contexts import Contexts


class Live(Activations):
    """Activations at the trained positions of every group of contexts, computed by the language model on request."""

    def __init__(self, lm: LM, contexts: Contexts, sites: Sequence[str], dtype: str = "float32", block: int = 256):
        self.lm = lm
        self.device = lm.device
        self.contexts = contexts
        self.dtype = DTYPES[dtype]
        self.widths = {parse_site(site).key: lm.width_at(site) for site in sites}
        self.rows_per_group = contexts.rows_per_group
        self.groups_per_block = max(1, block // contexts.batch)
        self.digest = digest_json([lm.digest, str(lm.dtype), contexts.digest, sorted(self.widths), dtype])

    @classmethod
    def open(
        cls,
        config: ActivationsConfig,
        *,
        lm: LM | None = None,
        contexts: Contexts | None = None,
        folder: Path | None = None,
    ) -> Live:
        assert lm is not None
        assert contexts is not None
        parse_options(cls, config)
        return cls.from_config(config, lm, contexts, config.sites)

    @classmethod
    def from_config(cls, config: ActivationsConfig, lm: LM, contexts: Contexts, sites: Sequence[str]) -> Live:
        """Return activations with a study's dtype and block size at the given sites."""
        return cls(lm, contexts, sites, config.dtype, config.block)

    def rows(self, group: int) -> dict[str, Tensor]:
        return self.launch_rows(group)()

    def launch_rows(self, group: int) -> Callable[[], dict[str, Tensor]]:
        mask = self.contexts.trained_mask(group)
        index = torch.from_numpy(np.flatnonzero(mask))
        ids, positions = self.contexts.ids(group), self.contexts.position_ids(group)
        no_padding = np.ones(ids.shape, dtype=bool)  # on the left; on the right it changes nothing
        activations = self.lm.read(ids, list(self.widths), positions, no_padding)
        rows = {
            site: x.flatten(0, 1).index_select(0, index.to(x.device)).to(self.device, self.dtype)
            for site, x in activations.items()
        }
        finite = torch.stack([torch.isfinite(x).all() for x in rows.values()])
        on_cpu, copied = finite, None
        if finite.is_cuda:
            on_cpu = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            copied = torch.cuda.current_stream().record_event()

        def finish() -> dict[str, Tensor]:
            """Wait for the check for non-finite values and return the rows. Raises DataError if the check fails."""
            if copied is not None:
                copied.synchronize()
            if not bool(on_cpu.all()) and (bad := find_non_finite(rows)):
                raise self._non_finite_error(group, mask, rows, *bad)
            return rows

        return finish

    def _non_finite_error(
        self, group: int, mask: np.ndarray, rows: dict[str, Tensor], site: str, row: int
    ) -> DataError:
        """Return the error for a row with a value that is not finite, which names document, position and value."""
        context, position = (int(i) for i in np.argwhere(mask)[row])
        chunk = self.contexts.chunk_index(group)[context, position]
        name = self.contexts.document_names[self.contexts.chunk_documents(group)[chunk]]
        value = next(v for v in rows[site][row].tolist() if not -float("inf") < v < float("inf"))
        ways = "lm.dtype = 'float32'" if self.lm.dtype == torch.float16 else "activations.dtype = 'float32'"
        return DataError(
            f"{site} of {name} has the activation {value} (group {group}, context {context}, position {position}): "
            f"leave the document out, or try {ways}."
        )


Origin = Live
