"""A study from text to page on as little as will do: whether it would run, found out in minutes.

The model, the sites, the series, the widths and the batch are the study's own; of the text a few batches are taken, of
each series the smallest and the largest setting, of each SAE two steps. The run lies in a temporary folder that is
removed. What fails here would have failed after hours: a site that is not there, a text that cannot be read, a machine
without the memory.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from jumpahead import store, sweep
from jumpahead.formatting import duration, size
from jumpahead.lm.model import LONGEST_CONTEXT
from jumpahead.lm.model_shape import outline
from jumpahead.progress import Progress
from jumpahead.study.schema import Series, Study, to_toml, units

STEPS = 2


class Rehearsal(NamedTuple):
    """What was seen."""

    saes: int
    seconds: float
    peak_bytes: int
    """The largest memory of this process so far."""

    def __str__(self) -> str:
        return (
            f"dry run: {self.saes} SAEs went from text to page in {duration(self.seconds)}, two steps each; "
            f"peak memory {size(self.peak_bytes)}. Nothing was kept."
        )


def rehearse(study: Study, progress: Progress | None = None) -> Rehearsal:
    """Runs the study small; raises what the study would raise."""
    began, small = time.perf_counter(), shrunk(study)
    with tempfile.TemporaryDirectory(prefix="jumpahead-") as folder:
        run = store.Run(Path(folder) / study.name)
        with run.lock():
            run.begin(to_toml(small))
            sweep.run(small, run, progress=progress)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Rehearsal(len(units(small)), time.perf_counter() - began, peak)


def shrunk(study: Study) -> Study:
    """The same study with little of everything that only costs time."""
    shape = outline(study.lm)
    context = study.lm.context or min(LONGEST_CONTEXT, shape.context if shape else LONGEST_CONTEXT)
    # Enough for the steps where BOS, special tokens and the ends of documents take their share.
    tokens = (STEPS + 1) * (study.train.batch + study.lm.batch * context)
    tokens *= 4 if study.text.chat else 1  # and where others speak too
    most = min(tokens, study.text.max_tokens or tokens)
    return study.model_copy(
        update={
            "text": study.text.model_copy(update={"max_tokens": most}),
            "activations": study.activations.model_copy(
                update={"scale_rows": min(study.activations.scale_rows, study.train.batch)}
            ),
            "sae": study.sae.model_copy(update={"seed": study.sae.seed[:1]}),
            "stream": study.stream.model_copy(update={"seed": study.stream.seed[:1]}),
            "train": study.train.model_copy(update={"tokens": STEPS * study.train.batch}),
            "series": tuple(_extremes(one) for one in study.series),
            "evaluate": study.evaluate.model_copy(
                update={"tokens": min(study.evaluate.tokens, 2 * context), "replicates": 20}
            ),
        }
    )


def _extremes(one: Series) -> Series:
    """The series at its smallest and its largest setting."""
    ((kind, values),) = one.given.items()
    name = "lambda_" if kind == "lambda" else kind
    return one.model_copy(update={name: tuple(sorted({min(values), max(values)}))})
