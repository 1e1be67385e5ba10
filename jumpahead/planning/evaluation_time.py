"""Evaluation time: what all SAEs of a site share per group of contexts, what each adds, and the bootstrap."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from jumpahead.planning.timing import TimedSAE, time_call
from jumpahead.progress import Phase, Progress
from jumpahead.resampling import MOST_CLUSTERS, replicate_weights
from jumpahead.study.schema import Study

if TYPE_CHECKING:
    import torch

    from jumpahead.lm.model import LM
    from jumpahead.sae.saved import SAE
    from jumpahead.text.contexts import Contexts


class EvaluationTime(NamedTuple):
    """The time to evaluate SAEs at one site."""

    setup: float
    """Seconds per SAE, once."""
    shared: float
    """Seconds per group of contexts that all SAEs share."""
    per_sae: list[float]
    """Seconds per group of contexts that each timed SAE adds."""

    def total(self, timed: list[TimedSAE], groups: float) -> float:
        """Return the seconds of evaluating all SAEs that `timed` stand for, on a number of groups."""
        saes = sum(one.stands_for for one in timed)
        per_group = sum(one.stands_for * seconds for one, seconds in zip(timed, self.per_sae, strict=True))
        return saes * self.setup + groups * (self.shared + per_group)


class RecordedProgress(Progress):
    """Records when a phase started and each time that it advanced, in seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def say(self, sentence: str) -> None:
        """Print nothing."""

    @contextmanager
    def phase(self, title: str, total: float, unit: str, done: float = 0) -> Iterator[Phase]:
        """Return a phase whose start and advances are recorded."""
        self.times.append(time.perf_counter())
        yield Phase(title, total, unit, done, lambda _: self.times.append(time.perf_counter()), self.clock)


def time_evaluation(
    evaluate: Callable[[dict[str, SAE], RecordedProgress], object], timed: list[TimedSAE]
) -> EvaluationTime:
    """Return the time of an evaluation that advances once per group and SAE; only the last group counts.

    The first SAE is evaluated twice in each group: what it takes less the second time is shared by all SAEs of the
    group. (On a GPU: by the SAEs that fit on it at once.)
    """
    progress, saes = RecordedProgress(), {"first": timed[0].sae, **{str(i): one.sae for i, one in enumerate(timed)}}
    start = time.perf_counter()
    evaluate(saes, progress)
    seconds = [after - before for before, after in itertools.pairwise(progress.times)][-len(saes) :]
    return EvaluationTime((progress.times[0] - start) / len(saes), max(0.0, seconds[0] - seconds[1]), seconds[1:])


def predict_site_evaluation(
    lm: LM, contexts: Contexts, site: str, timed: list[TimedSAE], scored: int, device: torch.device
) -> tuple[float, int]:
    """Return the seconds of evaluating all SAEs of a site on `scored` tokens, and the number of bootstrap clusters.

    Two groups of contexts are evaluated; the second is timed.
    """
    import torch

    from jumpahead.evaluation.evaluate import evaluate
    from jumpahead.evaluation.held_out import HeldOut

    text = HeldOut.first_groups(contexts, int(contexts.scored_per_group[0]) + 1)
    mean = torch.zeros(lm.width_at(site))
    times = time_evaluation(lambda saes, progress: evaluate(saes, lm, text, site, mean, progress, device=device), timed)
    groups = math.ceil(scored / int(contexts.scored_per_group[text.groups - 1]))
    return times.total(timed, groups), count_clusters(text.clusters, scored / text.tokens)


def count_clusters(seen: int, times: float) -> int:
    """Return the number of bootstrap clusters in `times` as much text as holds `seen` of them."""
    return min(MOST_CLUSTERS, math.ceil(seen * times))


def time_bootstrap(study: Study, clusters: int, timed: list[TimedSAE]) -> float:
    """Return the seconds of the bootstrap of all SAEs."""
    import numpy as np

    from jumpahead.metric_sums import Sums
    from jumpahead.metrics import bootstrap_replicates

    weights, total = replicate_weights(clusters, study.evaluate.replicates), 0.0
    for one in timed:
        empty = Sums.zeros(clusters, one.sae.d, one.sae.width)
        full = Sums(*(np.ones_like(values) for values in empty))
        total += one.stands_for * time_call(lambda full=full: bootstrap_replicates(full, weights))[0]
    return total
