"""The places of the comparison: stored activations to train on, and held-out data to judge by.

    stories260K   a language model of 260,000 parameters on TinyStories          outside of the repository
    tiny          the bundled language model on Python's standard library
    dictionary    synthetic activations: 512 unit directions in 64 dimensions, 128 parents with three children each

The texts are those of benchmarks/sparsity: `development` for learning rates and penalties, `final` for the table. The
dictionary has a seed of its own for each. Every library gets the same batches in the same order.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from benchmarks.quality.evaluator import CleanGroup, ExportedSAE, clean_groups, evaluate_on_rows, evaluate_on_text
from benchmarks.sparsity.setups import BATCH, SETUPS, Setup, TextPart, study_tables, text_file
from jumpahead.activations.stream import Stream
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.pipeline import run as pipeline_run
from jumpahead.pipeline.resources import Resources
from jumpahead.progress import make_progress
from jumpahead.storage.run_folder import Run
from jumpahead.study.load import parse

DICTIONARY: dict[str, Any] = {
    "d": 64, "features": 512, "l0": 10.6, "child_probability": [0.1, 0.25, 0.4], "correlated_groups": 16, "noise": 0.02,
    "groups": 2048, "rows_per_group": 1024,
}  # fmt: skip
"""Options of the synthetic activations, besides the seed."""
DICTIONARY_SEEDS: dict[TextPart, int] = {"development": 1, "final": 0}
MEMORY_LIMIT = 2**30
"""Batches are kept in memory up to this many bytes, and read again for every SAE beyond."""


class Budget(NamedTuple):
    """A number of training tokens and the seeds of the initialisation."""

    tokens: int
    seeds: tuple[int, ...]


class Place(NamedTuple):
    """Activations to train on, with the SAEs that are trained there."""

    name: str
    setup: Setup | None
    """The language model and its texts; None for the dictionary."""
    site: str
    d: int
    width: int
    l0: tuple[int, ...]
    tuning_l0: tuple[int, ...]
    """The L0 at which learning rates are tuned."""
    budgets: tuple[Budget, ...]
    held_out: int
    """Approximate number of held-out tokens."""
    max_text_tokens: int | None = None
    """Tokens of text that are used; None for all."""

    def missing(self) -> str:
        """Return a file that is missing on this machine; an empty string if there is none."""
        return "" if self.setup is None else self.setup.missing()

    def data_digest(self, part: TextPart, folder: Path) -> str:
        """Return the digest of the text, or of the dictionary's options."""
        if self.setup is None:
            return repr([sorted(DICTIONARY.items()), DICTIONARY_SEEDS[part]])
        limit = b"" if self.max_text_tokens is None else f"first {self.max_text_tokens} tokens".encode()
        return hashlib.sha256(text_file(self.setup, part, folder).read_bytes() + limit).hexdigest()

    def tables(
        self, part: TextPart, tokens: int, series: list[dict[str, Any]], folder: Path, seeds: tuple[int, ...]
    ) -> dict[str, Any]:
        """Return the tables of a study of jumpahead here."""
        if self.setup is not None:
            tables = study_tables(self.setup, part, tokens, series, folder, self.held_out, seeds)
            if self.max_text_tokens is not None:
                tables["text"]["max_tokens"] = self.max_text_tokens
            return tables
        options = DICTIONARY | {"seed": DICTIONARY_SEEDS[part]}
        return {
            "name": f"{self.name}-{part}-{tokens}",
            "activations": {"sites": [self.site], "origin": "synthetic", "options": options},
            "sae": {"width": [self.width], "seed": list(seeds)},
            "train": {"tokens": tokens, "batch": BATCH, "checkpoint_minutes": 5.0},
            "evaluate": {"tokens": self.held_out},
            "series": series,
        }


TWO, EIGHT = 2_000_000, 8_000_000
PLACES: dict[str, Place] = {
    place.name: place
    for place in (
        Place("stories260K", SETUPS["stories260K"], "layers.3.residual", 64, 1024, (4, 8, 16, 32), (8, 32),
              (Budget(TWO, (0, 1, 2)), Budget(EIGHT, (0,))), 220_000),
        Place("tiny", SETUPS["tiny"], "layers.1.residual", 256, 2048, (8, 32, 128), (32,),
              (Budget(TWO, (0,)),), 220_000),
        Place("dictionary", None, "dictionary", 64, 512, (11,), (11,), (Budget(TWO, (0,)),), 100_000),
    )
}  # fmt: skip


@final
class Batches:
    """The training batches of a place, in a fixed order; `iter` begins anew. Every batch is the caller's to change.

    seconds: time spent on reading batches so far, which is not the training's.
    """

    def __init__(self, stream: Stream, site: str, steps: int, d: int) -> None:
        self.stream, self.site, self.steps, self.seconds = stream, site, steps, 0.0
        self._fits = 4 * d * steps * stream.batch <= MEMORY_LIMIT
        self._kept: list[Tensor] = []

    def _read(self) -> Iterator[Tensor]:
        batches = self.stream.batches()
        try:
            for _ in range(self.steps):
                yield next(batches)[self.site].float()
        finally:
            batches.close()

    def __iter__(self) -> Iterator[Tensor]:
        begun = time.perf_counter()
        if self._fits and not self._kept:
            self._kept = list(self._read())
        source = iter(self._kept) if self._fits else self._read()
        self.seconds += time.perf_counter() - begun
        while True:
            begun = time.perf_counter()
            x = next(source, None)
            copy = None if x is None else x.clone()
            self.seconds += time.perf_counter() - begun
            if copy is None:
                return
            yield copy


@final
class OpenPlace:
    """A place with its activations on disk or in memory, and its held-out data ready."""

    def __init__(self, place: Place, part: TextPart, tokens: int, folder: Path, threads: int | None) -> None:
        self.place, self.tokens, self.folder, self.threads = place, tokens, folder, threads
        self.part: TextPart = part
        self.run = Run(folder / f"{place.name}-{part}-{tokens}")
        self.run.folder.mkdir(parents=True, exist_ok=True)
        first = [{"architecture": "topk", "k": [place.l0[0]]}]  # a study has at least one series
        study = self.study(first, (0,))
        pipeline_run.run_study(study, self.run, until="activations", progress=make_progress())
        self.resources = Resources(study, self.run, make_progress())
        stream = Stream(self.resources.open_activations(), BATCH, seed=0)
        self.batches = Batches(stream, place.site, tokens // BATCH, place.d)
        self.held_out = self.resources.load_held_out()
        self._groups: list[CleanGroup] = []

    def study(self, series: list[dict[str, Any]], seeds: tuple[int, ...]) -> Any:
        """Return a study of jumpahead here."""
        tables = self.place.tables(self.part, self.tokens, series, self.folder, seeds)
        if self.threads is not None:
            tables["train"]["threads"] = self.threads
        return parse(tables)

    def sample(self, rows: int) -> Tensor:
        """Return the first training activations, [rows, d] at most."""
        return next(iter(self.batches))[:rows]

    def evaluate(self, sae: ExportedSAE) -> dict[str, float]:
        """Return the metrics of an SAE on the held-out data."""
        if not isinstance(self.held_out, HeldOut):
            return evaluate_on_rows(sae, self.held_out, self.place.site)
        lm = self.resources.load_whole_lm()
        if not self._groups:
            with torch.no_grad():
                self._groups = clean_groups(lm, self.held_out, self.place.site)
        return evaluate_on_text(sae, lm, self._groups)
