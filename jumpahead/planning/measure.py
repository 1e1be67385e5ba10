"""The time that a study takes on this machine, from short measurements of each part.

    start        imports, the language model, its checks, the first step of an SAE (which loads or compiles kernels);
                 tokenising, at the rate of the first stretch of the text
    stream       activations, at the language model's rate: those for the scale and the initialisation, then whole
                 blocks for every training run, once per stream seed (once in all if they are stored on disk)
    SAEs         initialisation, and steps × the mean time of a step (step_time.py)
    evaluation   at each site, what all SAEs share per group of contexts and what each adds (evaluation_time.py)
    intervals    the bootstrap of each SAE

Not counted: dead features that AuxK revives, checkpoints, the page. Nothing heavy is imported before measuring.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from jumpahead.planning.evaluation_time import count_clusters, predict_site_evaluation, time_bootstrap, time_evaluation
from jumpahead.planning.step_time import time_training
from jumpahead.planning.timing import time_second_call
from jumpahead.study.schema import Study

if TYPE_CHECKING:
    from jumpahead.activations.base import Activations
    from jumpahead.lm.model import LM
    from jumpahead.text.contexts import Contexts
    from jumpahead.text.source import Source

TOKENIZED_CHARACTERS = 1_000_000
"""Length of the text whose tokenisation is timed, in characters."""


class StudySeconds(NamedTuple):
    """The parts of a study's time, roughly, in seconds."""

    start: float
    stream: float
    saes: float
    evaluation: float
    intervals: float

    @property
    def total(self) -> float:
        """Return the seconds of all parts together."""
        return sum(self)


def measure_study(
    study: Study, source: Source, *, dtype: str | None, stored_rows: int | None, new_tokens: int, scored_tokens: int
) -> StudySeconds:
    """Return the time of every part of a study with a language model; takes about a minute.

    dtype: the dtype chosen for `lm.dtype = "fast"`, None to choose it here. stored_rows: number of activations that the
    LM computes if they are stored on disk. new_tokens: number of tokens that are not tokenised yet. scored_tokens:
    number of tokens that SAEs are evaluated on.
    """
    start_time = time.perf_counter()
    import torch

    from jumpahead.lm.checks import check_and_truncate
    from jumpahead.lm.model import LM
    from jumpahead.lm.precision import choose_dtype
    from jumpahead.training.devices import set_threads, training_device

    set_threads(study.train.threads)
    sites = list(study.activations.sites)
    if study.lm.dtype == "fast" and dtype is None:
        dtype = choose_dtype(study.lm, source, sites).dtype
    lm = LM.load(study.lm)
    reader = LM.load(study.lm.model_copy(update={"dtype": dtype}) if dtype else study.lm)
    check_and_truncate(reader, sites)
    start = time.perf_counter() - start_time

    contexts = _sample_contexts(study, source, lm, "train", 6 * lm.batch * lm.context)
    start += new_tokens * _seconds_per_token(source, lm)
    groups = range(min(contexts.num_groups, 4))
    ids = [torch.from_numpy(contexts.ids(group)) for group in groups]
    masks = [torch.from_numpy(contexts.trained_mask(group)) for group in groups]
    rows = contexts.rows_per_group[: len(groups)]
    per_row = time_second_call(lambda: [reader.read(group, sites) for group in ids]) / int(rows.sum())
    activations = {
        site: torch.cat([reader.read(group, [site])[site][mask] for group, mask in zip(ids, masks, strict=True)])
        for site in sites
    }
    block = int(rows.mean() * max(1, study.activations.block // lm.batch))
    training = time_training(study, {site: x.float() for site, x in activations.items()})
    evaluation, clusters = 0.0, 1
    text = _contexts_to_time(study, source, lm)
    for site in sites:
        timed = [one for one in training.timed if one.site == site]
        seconds, clusters = predict_site_evaluation(lm, text, site, timed, scored_tokens, training_device(study.train))
        evaluation += seconds
    return StudySeconds(
        start + training.kernel_start, per_row * (stored_rows or count_rows_read(study, block)), training.training,
        evaluation, time_bootstrap(study, clusters, training.timed),
    )  # fmt: skip


def measure_study_without_lm(study: Study, data: Activations, held_out: Activations) -> StudySeconds:
    """Return the time of every part of a study on activations without a language model; takes less than a minute."""
    start_time = time.perf_counter()
    from jumpahead.evaluation.held_out import HeldOutRows
    from jumpahead.evaluation.reconstruct import reconstruct
    from jumpahead.training.devices import set_threads, training_device

    set_threads(study.train.threads)
    start = time.perf_counter() - start_time
    groups = list(range(min(len(data.rows_per_group), 4)))
    rows = data.rows_per_group[groups]
    per_row = time_second_call(lambda: data.gather(groups)) / int(rows.sum())
    training = time_training(study, {site: x.float() for site, x in data.gather(groups).items()})
    sample = HeldOutRows.first_groups(held_out, int(held_out.rows_per_group[0]) + 1)
    scored, evaluation = min(study.evaluate.tokens, held_out.total_rows), 0.0
    for site in data.widths:
        timed = [one for one in training.timed if one.site == site]
        device = training_device(study.train)
        times = time_evaluation(
            lambda saes, progress, site=site, device=device: reconstruct(saes, sample, site, progress, device=device),
            timed,
        )
        evaluation += times.total(timed, scored / int(held_out.rows_per_group[sample.groups - 1]))
    clusters = count_clusters(len(held_out.rows_per_group), 1.0)
    block = int(rows.mean() * data.groups_per_block)
    return StudySeconds(
        start + training.kernel_start, per_row * count_rows_read(study, block), training.training, evaluation,
        time_bootstrap(study, clusters, training.timed),
    )  # fmt: skip


def count_rows_read(study: Study, block: int) -> int:
    """Return the number of activations that the LM computes (or that are read from files).

    They are those for the scale and the initialisation, and whole blocks for the training on every stream seed. block:
    number of rows per block.
    """
    from jumpahead.pipeline.resources import SAMPLE_ROWS

    total = study.train.steps * study.train.batch
    first = min(study.activations.scale_rows, total) + min(SAMPLE_ROWS, total)
    return first + -(-total // max(1, block)) * max(1, block) * len(study.stream.seed)


def _sample_contexts(study: Study, source: Source, lm: LM, split: Any, tokens: int) -> Contexts:
    """Return a few groups of contexts of a split of the study's text."""
    from jumpahead.text.documents import documents
    from jumpahead.text.tokenize import tokenize

    some = itertools.islice(documents(source), 2_000)
    return tokenize(some, lm, split=split, held_out=study.text.held_out, max_tokens=tokens)


def _seconds_per_token(source: Source, lm: LM) -> float:
    """Return the seconds of tokenising per token, measured on the beginnings of documents."""
    from jumpahead.text.documents import documents
    from jumpahead.text.tokenize import encode_pieces

    pieces, size = [], 0
    for document in documents(source):
        pieces.append((document, document.text[: TOKENIZED_CHARACTERS // 10]))
        size += len(pieces[-1][1])
        if size >= TOKENIZED_CHARACTERS:
            break
    seconds = time_second_call(lambda: encode_pieces(pieces, lm))
    return seconds / max(1, sum(len(ids) for ids, _ in encode_pieces(pieces, lm)))


def _contexts_to_time(study: Study, source: Source, lm: LM) -> Contexts:
    """Return a few groups of held-out contexts; of training contexts if there is too little held-out text."""
    from jumpahead.errors import DataError

    try:
        return _sample_contexts(study, source, lm, "held_out", 3 * lm.batch * lm.context)
    except DataError:
        return _sample_contexts(study, source, lm, "train", 3 * lm.batch * lm.context)
