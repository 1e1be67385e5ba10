"""A dry run: the whole study, from text to page, on a few batches of text and two training steps per SAE.

The model, sites, series, widths and batch size are the study's own; each series trains at its smallest and largest
setting. The run is in a temporary folder that is removed. It finds in minutes what would fail after hours: a site that
does not exist, a text that cannot be read, too little memory.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jumpahead.formatting import format_bytes, format_counted, format_duration
from jumpahead.lm.model import DEFAULT_MAX_CONTEXT
from jumpahead.lm.model_shape import read_model_shape
from jumpahead.pipeline.run import run_study
from jumpahead.progress import Progress
from jumpahead.storage.run_folder import Run
from jumpahead.study.save import to_toml
from jumpahead.study.schema import Series, Study, sae_specs

TRAINING_STEPS = 2
"""Training steps of each SAE."""


class DryRunResult(NamedTuple):
    """The size of a dry run that succeeded."""

    saes: int
    """Number of SAEs that were trained and evaluated."""
    seconds: float
    peak_bytes: int
    """Peak resident memory of this process so far."""

    def __str__(self) -> str:
        """Return the sentence that the command line prints."""
        return (
            f"dry run: {format_counted(self.saes, 'SAE')} went from text to page in {format_duration(self.seconds)}, "
            f"two steps each; peak memory {format_bytes(self.peak_bytes)}. Nothing was kept."
        )


def perform_dry_run(study: Study, progress: Progress | None = None) -> DryRunResult:
    """Run the study on little data in a temporary folder; return what it took. Raises the errors of the full run."""
    start, small = time.perf_counter(), shrink_study(study)
    with tempfile.TemporaryDirectory(prefix="jumpahead-") as folder:
        run = Run(Path(folder) / study.name)
        with run.lock():
            run.record_study(to_toml(small))
            run_study(small, run, progress=progress)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return DryRunResult(len(sae_specs(small)), time.perf_counter() - start, peak)


def shrink_study(study: Study) -> Study:
    """Return the study with few tokens, steps, seeds and settings; all else is unchanged."""
    shape = read_model_shape(study.lm)
    context = study.lm.context or min(DEFAULT_MAX_CONTEXT, shape.max_context if shape else DEFAULT_MAX_CONTEXT)
    # More than the steps need, because BOS, special tokens and the ends of documents are not trained on.
    tokens = (TRAINING_STEPS + 1) * (study.train.batch + study.lm.batch * context)
    tokens *= 4 if study.text.chat else 1  # most tokens may be of other roles
    max_tokens = min(tokens, study.text.max_tokens or tokens)
    return study.model_copy(
        update={
            "text": study.text.model_copy(update={"max_tokens": max_tokens}),
            "activations": study.activations.model_copy(
                update={"scale_rows": min(study.activations.scale_rows, study.train.batch)}
            ),
            "sae": study.sae.model_copy(update={"seed": study.sae.seed[:1]}),
            "stream": study.stream.model_copy(update={"seed": study.stream.seed[:1]}),
            "train": replace(study.train, tokens=TRAINING_STEPS * study.train.batch),
            "series": tuple(_at_extremes(series) for series in study.series),
            "evaluate": study.evaluate.model_copy(
                update={"tokens": min(study.evaluate.tokens, 2 * context), "replicates": 20}
            ),
            "features": study.features.model_copy(
                update={"tokens": min(study.features.tokens, 2 * context), "bias_features": 1, "bias_tokens": context}
            ),
        }
    )


def _at_extremes(series: Series) -> Series:
    """Return the series with its smallest and its largest setting only."""
    ((kind, values),) = series.settings_by_kind.items()
    name = "lambda_" if kind == "lambda" else kind
    return series.model_copy(update={name: tuple(sorted({min(values), max(values)}))})
