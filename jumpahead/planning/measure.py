"""How long a study will take on this machine, from a short probe of each of its parts.

    start        imports, the model, its check and the first step of an SAE (which loads or compiles kernels), as they
                 are done here; tokenising, at the rate of a first stretch of the text
    stream       activations at the LM's rate: what the scale and the start are measured on, and then every block of a
                 training, once per stream seed (once in all where they are kept)
    SAEs         a fresh state each, and steps × a step's time at the smallest and the largest setting of each series;
                 where several SAEs train side by side, times what a step takes then
    evaluation   at each site, what all SAEs share per group of contexts, and what each adds: encoder, decoder, the LM
                 after the site
    intervals    the bootstrap of each SAE

A fresh SAE is not what trains most of the time. Its support is larger, and what it had at the start goes like
e^(−steps/τ): a step is timed fresh, and again with the biases lowered until the support is as large as one that
trained to the requested L0. Over n steps that is, on average,

    t̄ = t_settled + (t_fresh − t_settled)·(τ/n)·(1 − e^(−n/τ))

Evaluation is timed on SAEs whose biases are lowered until their L0 is the requested one. Where a series gives λ, nobody
knows its L0 before: fresh SAEs stand for trained ones. Not counted: dead features that AuxK brings back, checkpoints,
the page.

Nothing heavy is imported before a probe begins.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from jumpahead.progress import Phase, Progress
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.study.schema import Series, Study, Unit, units

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from jumpahead.activations.base import Activations
    from jumpahead.engine import Kernels, State
    from jumpahead.lm.model import LM
    from jumpahead.sae.base import SAE, Architecture, Params
    from jumpahead.text.contexts import Contexts
    from jumpahead.text.source import Source

TAU = 50.0
"""Steps in which the support falls to 1/e of what it had beyond the settled one, at the `short` recipe's rates:
JumpReLU 37 in the demo (L0 32: 690 entries per token, 100 after 100 steps, 58 in the end) and 51 to 53 on stories260K
(L0 8: 103, 41 after 60 steps, 23 after 116, 12.8 in the end); docs/LOG.md, 2026-11-24."""
WINDOW = 1.25
"""Entries of a settled support per active feature, where thresholds train in a window: 1.25 and 1.15 at L0 8 and 32 on
stories260K (docs/LOG.md, 2026-11-26, the pull on thresholds); 1.6 to 1.8 with the wider window before."""
ROWS = 256
"""Activations by which biases are set."""
CHARACTERS = 1_000_000
"""Of text, tokenised to see how fast that goes."""


class Seconds(NamedTuple):
    """A rough time, from a short measurement on this machine."""

    start: float
    stream: float
    saes: float
    evaluation: float
    intervals: float

    @property
    def total(self) -> float:
        return sum(self)


class Tried(NamedTuple):
    """An SAE that was timed."""

    site: str
    sae: SAE
    stands_for: float
    """How many of the study's."""


def measured(study: Study, source: Source, *, dtype: str | None, kept: int | None, new: int, scored: int) -> Seconds:
    """Times every part of a study that has a language model; a minute or so.

    dtype: what `lm.dtype = "fast"` was decided to be; None decides it here. kept: how many activations the LM makes,
    where each is made once and kept. new: tokens that are not tokenised yet. scored: tokens that SAEs are evaluated on.
    """
    began = time.perf_counter()
    import torch

    from jumpahead.lm import checks, precision
    from jumpahead.lm.model import LM
    from jumpahead.training import device_for, use_threads

    use_threads(study.train.threads)
    sites = list(study.activations.sites)
    if study.lm.dtype == "fast" and dtype is None:
        dtype = precision.decide(study.lm, source, sites).dtype
    lm = LM.load(study.lm)
    reader = LM.load(study.lm.model_copy(update={"dtype": dtype}) if dtype else study.lm)
    checks.examine(reader, sites)
    start = time.perf_counter() - began

    contexts = _some(study, source, lm, "train", 6 * lm.batch * lm.context)
    start += new * _per_token(source, lm)
    groups = range(min(contexts.groups, 4))
    made = [torch.from_numpy(contexts.ids(group)) for group in groups]
    trained = [torch.from_numpy(contexts.trained(group)) for group in groups]
    rows = contexts.rows_per_group[: len(groups)]
    per_row = _timed(lambda: [reader.read(ids, sites) for ids in made]) / int(rows.sum())
    seen = {
        site: torch.cat([reader.read(ids, [site])[site][where] for ids, where in zip(made, trained, strict=True)])
        for site in sites
    }
    block = int(rows.mean() * max(1, study.activations.block // lm.batch))
    first, saes, tried = _steps(study, {site: x.float() for site, x in seen.items()})
    evaluation, clusters = 0.0, 1
    text = _held_out(study, source, lm)
    for site in sites:
        here = [one for one in tried if one.site == site]
        seconds, clusters = _evaluation(lm, text, site, here, scored, device_for(study.train))
        evaluation += seconds
    return Seconds(
        start + first, per_row * (kept or _rows_read(study, block)), saes, evaluation,
        _intervals(study, clusters, tried),
    )  # fmt: skip


def measured_without_lm(study: Study, data: Activations, held_out: Activations) -> Seconds:
    """The same of activations that are read: a block of them, the steps, and encoding what is held out."""
    began = time.perf_counter()
    from jumpahead.evaluation import HeldOutRows, reconstruct
    from jumpahead.training import device_for, use_threads

    use_threads(study.train.threads)
    start = time.perf_counter() - began
    groups = list(range(min(len(data.rows_per_group), 4)))
    rows = data.rows_per_group[groups]
    per_row = _timed(lambda: data.gather(groups)) / int(rows.sum())
    first, saes, tried = _steps(study, {site: x.float() for site, x in data.gather(groups).items()})
    some = HeldOutRows.of(held_out, int(held_out.rows_per_group[0]) + 1)
    scored, evaluation = min(study.evaluate.tokens, held_out.total), 0.0
    for site in data.widths:
        here = [one for one in tried if one.site == site]
        device = device_for(study.train)
        laps = lap_times(
            lambda saes, watch, site=site, device=device: reconstruct(saes, some, site, watch, device=device), here
        )
        evaluation += laps.total(here, scored / int(held_out.rows_per_group[some.groups - 1]))
    clusters = _clusters(len(held_out.rows_per_group), 1.0)
    block = int(rows.mean() * data.groups_per_block)
    return Seconds(
        start + first, per_row * _rows_read(study, block), saes, evaluation, _intervals(study, clusters, tried)
    )


def _rows_read(study: Study, block: int) -> int:
    """Activations that are asked of the LM (or read) in all: for scale and start, and whole blocks for every training.

    block: rows of one.
    """
    from jumpahead.sweep import SAMPLE

    total = study.train.steps * study.train.batch
    first = min(study.activations.scale_rows, total) + min(SAMPLE, total)
    return first + -(-total // max(1, block)) * max(1, block) * len(study.stream.seed)


def _some(study: Study, source: Source, lm: LM, split: Any, tokens: int) -> Contexts:
    """A few groups of the study's text."""
    from jumpahead.text.contexts import tokenize
    from jumpahead.text.documents import documents

    some = itertools.islice(documents(source), 2_000)
    return tokenize(some, lm, split=split, held_out=study.text.held_out, max_tokens=tokens)


def _per_token(source: Source, lm: LM) -> float:
    """Seconds of tokenising, per token: of the beginnings of documents."""
    from jumpahead.text.contexts import encoded
    from jumpahead.text.documents import documents

    pieces, size = [], 0
    for document in documents(source):
        pieces.append((document, document.text[: CHARACTERS // 10]))
        size += len(pieces[-1][1])
        if size >= CHARACTERS:
            break
    seconds = _timed(lambda: encoded(pieces, lm))
    return seconds / max(1, sum(len(ids) for ids, _ in encoded(pieces, lm)))


def _clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it; on a GPU, until it is done with it."""
    import torch

    began = time.perf_counter()
    found = work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began, found


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the second call."""
    work()
    return _clocked(work)[0]


# ---------------------------------------------------------------------------------------------- SAEs in training


def _steps(study: Study, seen: Mapping[str, Tensor]) -> tuple[float, float, list[Tried]]:
    """Seconds of the very first step, and of training all SAEs; and the SAEs that were timed: of each series the
    extreme settings, which stand for those between. seen [n, d] at every site: activations in the LM's own unit."""
    first, total, tried = 0.0, 0.0, []
    found = units(study)
    for site, width, one in itertools.product(seen, study.sae.width, study.series):
        settings = sorted(one.settings, key=lambda setting: setting.value)
        extremes = list(dict.fromkeys((settings[0], settings[-1])))
        stands_for = sum(_is_of(unit, site, width, one) for unit in found) / len(extremes)
        for setting in extremes:
            begun, fresh, settled, sae = _one(study, one, setting, width, seen[site])
            first = first or max(0.0, begun - fresh)
            start = begun if tried else fresh  # of the very first, what loads kernels is counted apart
            total += stands_for * (start + study.train.steps * mean_step(fresh, settled, study.train.steps))
            tried.append(Tried(site, sae, stands_for))
    return first, total, tried


def _is_of(unit: Unit, site: str, width: int, one: Series) -> bool:
    return (unit.site, unit.width, unit.series.name) == (site, width, one.name)


def mean_step(fresh: float, settled: float, steps: int) -> float:
    """Seconds of a step, on average over so many from the start."""
    if steps == 0:
        return fresh
    return settled + (fresh - settled) * TAU / steps * -math.expm1(-steps / TAU)


def _one(study: Study, one: Series, setting: Any, width: int, x: Tensor) -> tuple[float, float, float, SAE]:
    """Seconds to begin (a fresh state and its first step), of a step then, and of one late in training; and the SAE,
    with the L0 that it is asked for on x [n, d], which is in the LM's own unit."""
    from jumpahead.engine import fresh_state, kernel_layer, settle, step
    from jumpahead.sae.base import SAE
    from jumpahead.sae.recipe import Shape
    from jumpahead.sweep import SAMPLE
    from jumpahead.training import device_for

    scale = float(x.square().sum(1).mean().sqrt())
    unit = (x / scale).to(device_for(study.train))
    kind, layer = ARCHITECTURES.get(one.architecture), kernel_layer(device=unit.device)
    rules = kind.recipe_for(study.train, Shape(x.shape[1], width, setting), one.recipe)
    arch = kind(kind.Options(**one.options), setting, rules)
    batch = unit.repeat(-(-study.train.batch // len(unit)), 1)[: study.train.batch]
    sample = unit.repeat(-(-SAMPLE // len(unit)), 1)[:SAMPLE]

    def steps(state: State, count: int) -> None:
        for _ in range(count):
            step(state, batch, rules.lr * 1e-3, 1.0, layer)  # hardly moves: what is timed is the support as it is
        settle(state, layer)

    def begin() -> State:
        state = fresh_state(arch, x.shape[1], width, 0, sample)
        steps(state, 1)
        return state

    begun, state = _clocked(begin)
    fresh = settled = _clocked(lambda: steps(state, 2))[0] / 2
    if setting.kind == "l0":
        entries = setting.value * (WINDOW if arch.thresholds(arch.derive(state.p)) is not None else 1.0)
        if lower_biases(arch, state.p, unit[:ROWS] - state.p["b_dec"], entries, training=True):
            steps(state, 1)
            settled = min(fresh, _clocked(lambda: steps(state, 2))[0] / 2)
    params = arch.fold({name: tensor.cpu() for name, tensor in state.p.items()}, scale)
    if setting.kind == "l0":
        lower_biases(arch, params, x[:ROWS].cpu(), setting.value, training=False)
    share = _share(state, steps, layer, len(units(study)))
    return begun, share * fresh, share * settled, SAE(arch, params, {})


def _share(state: State, steps: Callable[[State, int], None], layer: Kernels, saes: int) -> float:
    """What a step adds to the time of a study in which several go side by side, in parts of its own time alone."""
    together = layer.at_once(saes)
    if together == 1:
        return 1.0
    twins = [copy.deepcopy(state) for _ in range(together)]
    beside = _timed(lambda: layer.side_by_side(twins, lambda one: steps(one, 2)))
    return beside / together / _timed(lambda: steps(state, 2))


def lower_biases(arch: Architecture, p: Params, x: Tensor, entries: float, *, training: bool) -> bool:
    """Moves b_enc, in place and for all features alike, until the support over x [n, d] (b_dec taken off) has `entries`
    entries per token, as exactly as whole numbers allow. False where a number of entries is selected anyway."""
    import torch

    from jumpahead.sae.base import Above, Knobs

    selection = arch.selection(p, arch.derive(p), Knobs(), training=training)
    if not isinstance(selection, Above):
        return False
    margin = (x @ p["W_enc"].T + p["b_enc"] - selection.lower).flatten()
    count = min(len(margin) - 1, max(1, round(entries * len(x))))
    edge = margin.topk(count + 1).values[-1]  # selected is what is larger
    if bool(torch.isfinite(edge)):
        p["b_enc"] -= edge
    return bool(torch.isfinite(edge))


# ---------------------------------------------------------------------------------------------- evaluation


class Laps(NamedTuple):
    """What evaluating takes at one site."""

    setup: float
    """Seconds per SAE, once."""
    shared: float
    """Seconds per group of contexts, whatever the number of SAEs."""
    each: list[float]
    """Seconds per group and SAE."""

    def total(self, tried: list[Tried], groups: float) -> float:
        """Seconds for all SAEs that these stand for, on so many groups."""
        saes = sum(one.stands_for for one in tried)
        per_group = sum(one.stands_for * each for one, each in zip(tried, self.each, strict=True))
        return saes * self.setup + groups * (self.shared + per_group)


class Watch(Progress):
    """Notes when a phase began, and when it advanced."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def say(self, sentence: str) -> None:
        pass

    @contextmanager
    def phase(self, title: str, total: float, unit: str, done: float = 0) -> Iterator[Phase]:
        self.times.append(time.perf_counter())
        yield Phase(title, total, unit, done, lambda _: self.times.append(time.perf_counter()), self.clock)


def lap_times(evaluate: Callable[[dict[str, SAE], Watch], object], tried: list[Tried]) -> Laps:
    """Times an evaluation that advances once per group and SAE, of the last group. The first SAE comes twice: what it
    takes less the second time is what the SAEs of a group share. (On a GPU, of SAEs that fit on it at once.)"""
    watch, saes = Watch(), {"first": tried[0].sae, **{str(i): one.sae for i, one in enumerate(tried)}}
    began = time.perf_counter()
    evaluate(saes, watch)
    laps = [b - a for a, b in itertools.pairwise(watch.times)][-len(saes) :]
    return Laps((watch.times[0] - began) / len(saes), max(0.0, laps[0] - laps[1]), laps[1:])


def _held_out(study: Study, source: Source, lm: LM) -> Contexts:
    """Text to try an evaluation on."""
    from jumpahead.errors import DataError

    try:
        return _some(study, source, lm, "held_out", 3 * lm.batch * lm.context)
    except DataError:  # too little of the text is held out: any other will do
        return _some(study, source, lm, "train", 3 * lm.batch * lm.context)


def _evaluation(
    lm: LM, contexts: Contexts, site: str, tried: list[Tried], scored: int, device: torch.device
) -> tuple[float, int]:
    """Seconds of evaluating all SAEs of a site on so many tokens, the last of two groups being timed; and clusters."""
    import torch

    from jumpahead.evaluation import HeldOut, evaluate

    text = HeldOut.of(contexts, int(contexts.scored_per_group[0]) + 1)
    mean = torch.zeros(lm.width_at(site))
    laps = lap_times(lambda saes, watch: evaluate(saes, lm, text, site, mean, watch, device=device), tried)
    groups = math.ceil(scored / int(contexts.scored_per_group[text.groups - 1]))
    return laps.total(tried, groups), _clusters(text.clusters, scored / text.tokens)


def _clusters(seen: int, times: float) -> int:
    from jumpahead.evaluation import MOST_CLUSTERS

    return min(MOST_CLUSTERS, math.ceil(seen * times))


def _intervals(study: Study, clusters: int, tried: list[Tried]) -> float:
    """Seconds of the bootstrap of all SAEs."""
    import numpy as np

    from jumpahead import metrics

    weights, total = metrics.replicate_weights(clusters, study.evaluate.replicates), 0.0
    for one in tried:
        empty = metrics.Sums.zeros(clusters, one.sae.d, one.sae.width)
        full = metrics.Sums(*(np.ones_like(values) for values in empty))
        total += one.stands_for * _clocked(lambda full=full: metrics.bootstrap(full, weights))[0]
    return total
