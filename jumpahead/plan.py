"""What a study will do, before it does anything: SAEs, tokens, disk, memory, and with a short probe, time.

P = 2·M·d + M·(vectors) + d  parameters of one SAE

    memory    10 bytes per parameter of every SAE that trains at once (fp32 value and second moment, bf16 copy of W_enc)
              + two blocks of activations (the one in use, and the next where it is read ahead)
              + one step's working memory (`step_workspace`) + the LM
    disk      4 bytes per parameter and SAE, 8 more while it trains (a checkpoint), the token ids, activations if kept
    time      stream: tokens at the LM's rate, once per stream seed; SAEs: steps × a step's time, measured at the
              smallest and the largest setting of each series; evaluation: the LM's rate again, once per SAE

Nothing heavy is imported unless time is measured.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jumpahead import store
from jumpahead.lm.config import LMConfig, TextConfig
from jumpahead.lm.fingerprint import of_precision
from jumpahead.lm.outline import Outline, model_folder, outline
from jumpahead.lm.sites import parse_site
from jumpahead.log import duration, size
from jumpahead.study import Series, Study, Unit, units

if TYPE_CHECKING:
    from torch import Tensor

BYTES_PER_TOKEN = 4.0
"""Of English or code in a vocabulary of tens of thousands; used where the tokenizer is not on this machine."""
VECTORS = 3
"""[M] parameters of an SAE, at most (Gated: b_enc, b_mag, r_mag)."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
ENTRIES = 200
"""Entries of the support per token, at most in common settings."""
ENOUGH_BYTES = 50_000_000
"""Of text that are read to count it; what is beyond is taken to be alike."""


class Tokens(NamedTuple):
    """How much text there is."""

    train: int
    held_out: int
    is_counted: bool
    """False: estimated from the size of the text."""


class Panel(NamedTuple):
    """One site and width."""

    site: str
    width: int
    d: int | None
    """None where the model's shape is not known on this machine."""
    saes: int
    parameters: int | None
    """Of one SAE."""


class Card(NamedTuple):
    """A GPU, and what of the study it holds."""

    name: str
    bytes: int
    fits: str
    """How many SAEs of which width fit at once: a clause."""


class Seconds(NamedTuple):
    """A rough time, from a short measurement on this machine."""

    stream: float
    saes: float
    evaluation: float

    @property
    def total(self) -> float:
        return sum(self)


@dataclass(frozen=True)
class Plan:
    """What a study will do."""

    name: str
    folder: str
    model: str
    panels: list[Panel]
    series: dict[str, str]
    """Each series' settings: `l0 = 4, 8, 16`."""
    saes: int
    found: int
    """SAEs of the study that its run's folder holds already."""
    tokens: Tokens
    train_tokens: int
    """Activations each SAE is trained on."""
    epochs: float
    """How often each training token is seen."""
    scored_tokens: int
    """Held-out tokens that each SAE is evaluated on."""
    disk_bytes: int | None
    """When done, of all SAEs."""
    disk_bytes_training: int | None
    """At most, while training."""
    memory_bytes: int | None
    seconds: Seconds | None = None
    card: Card | None = None
    """The GPU here that SAEs would train on."""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes, times in seconds."""
        plain = asdict(self)
        plain["tokens"] = self.tokens._asdict()
        plain["card"] = self.card and self.card._asdict()
        plain["panels"] = [panel._asdict() for panel in self.panels]
        plain["seconds"] = self.seconds and {**self.seconds._asdict(), "total": self.seconds.total}
        return plain

    def facts(self) -> list[tuple[str, str]]:
        """What, and how much: the rows of the table."""
        train, held_out = (self._count(tokens) for tokens in self.tokens[:2])
        rows = [("model", self.model)]
        for panel in self.panels:
            shape = f"{panel.saes} SAEs of {panel.width:,} features"
            if panel.d is not None and panel.parameters is not None:
                shape += f" × {panel.d:,} dimensions, {panel.parameters:,} parameters each"
            rows.append((panel.site, shape))
        rows += list(self.series.items())
        rows.append(("SAEs", f"{self.saes}" + (f", of which {self.found} are in {self.folder}" if self.found else "")))
        rows.append(("training text", f"{train} tokens"))
        times = f"each token {self.epochs:.1f} times" if self.epochs > 1 else f"{100 * self.epochs:.0f} % of the text"
        rows.append(("trained on", f"{self.train_tokens:,} activations per SAE: {times}"))
        rows.append(("held-out text", f"{held_out} tokens, of which {self._count(self.scored_tokens)} are scored"))
        if self.memory_bytes is not None:
            rows.append(("memory", f"about {size(self.memory_bytes)}"))
        if self.card is not None:
            rows.append(("GPU", f"{self.card.name}, {size(self.card.bytes)}; {self.card.fits}"))
        if self.disk_bytes is not None and self.disk_bytes_training is not None:
            rows.append(("disk", f"about {size(self.disk_bytes)}; {size(self.disk_bytes_training)} while training"))
        if self.seconds is not None:
            parts = f"LM {duration(self.seconds.stream)}, SAEs {duration(self.seconds.saes)}"
            parts += f", evaluation {duration(self.seconds.evaluation)}"
            rows.append(("time", f"roughly {duration(self.seconds.total)}: {parts}"))
        else:
            rows.append(("time", "unknown: --measure times a few steps on this machine"))
        return rows

    def _count(self, tokens: int) -> str:
        """Exact where it was counted or asked for, else to two digits."""
        if self.tokens.is_counted or tokens not in self.tokens:
            return f"{tokens:,}"
        return f"about {int(float(f'{tokens:.1e}')):,}"

    def text(self, columns: int = 80) -> str:
        """The facts as two columns, what does not fit indented below, and the notes."""
        rows = self.facts()
        left = max(len(what) for what, _ in rows) + 2
        lines = [self.name, ""]
        for what, value in rows:
            first, *more = textwrap.wrap(value, max(20, columns - left)) or [""]
            lines += [f"{what:<{left}}{first}", *(" " * left + line for line in more)]
        for note in self.notes:
            lines += ["", *textwrap.wrap(f"Note: {note}.", columns)]
        return "\n".join(lines)


def make(study: Study, folder: str | Path, *, measure: bool = False) -> Plan:
    """The plan of a study whose run lies, or will lie, in `folder`."""
    run, found = store.Run(folder), units(study)
    shape = outline(study.lm)
    panels = [_panel(site, width, found, shape) for site in study.activations.sites for width in study.sae.width]
    tokens = _tokens(study, run)
    dtype = _decided(study.lm, run)
    seconds = measured(study, found, dtype) if measure else None
    known = [panel for panel in panels if panel.parameters is not None]
    parameters = sum(panel.saes * (panel.parameters or 0) for panel in panels) if len(known) == len(panels) else None
    at_once = None if parameters is None else parameters // len(study.stream.seed)  # streams are run one by one
    disk = None if parameters is None else 4 * parameters + 300_000 * len(found) + _token_bytes(study, shape, tokens)
    if disk is not None and study.activations.origin == "shards":
        disk += tokens.train * sum(_widths(study, shape)) * DTYPE_BYTES[study.activations.dtype]
    plan = Plan(
        name=study.name,
        folder=str(folder),
        model=_model(study.lm, shape, dtype),
        panels=panels,
        series={one.name: _settings(one) for one in study.series},
        saes=len(found),
        found=sum(run.at(unit.key).weights.exists() for unit in found),
        tokens=tokens,
        train_tokens=study.train.steps * study.train.batch,
        epochs=study.train.steps * study.train.batch / max(1, tokens.train),
        scored_tokens=min(study.evaluate.tokens, tokens.held_out),
        disk_bytes=disk,
        disk_bytes_training=None if disk is None or at_once is None else disk + 8 * at_once,
        memory_bytes=None if at_once is None else 10 * at_once + _workspace(study, shape),
        seconds=seconds,
    )
    if study.train.device != "cpu" and (found_card := gpu()) is not None:
        plan = replace(plan, card=Card(*found_card, _fits(study, shape, known, found_card[1])))
    plan.notes.extend(_notes(study, plan))
    return plan


def gpu() -> tuple[str, int] | None:
    """Name and bytes of the first NVIDIA GPU of this machine, as its driver says; None without one."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        name, mebibytes = said.splitlines()[0].rsplit(",", 1)
        return name.strip(), int(mebibytes) * 2**20
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def _fits(study: Study, shape: Outline | None, panels: list[Panel], room: int) -> str:
    """How many SAEs train at once on a GPU with so many bytes, beside the LM and the activations."""
    if not panels:
        return "how many SAEs fit is not known before the model's shape is"
    widest = max(panels, key=lambda panel: panel.parameters or 0)
    left = room - _workspace(study, shape) - gpu_workspace(study.train.batch, widest.d or 0, widest.width)
    count = max(0, int(left // (10 * (widest.parameters or 1))))
    return f"{count} SAEs of {widest.width:,} features fit at once"


def gpu_workspace(batch: int, d: int, width: int) -> int:
    """Bytes that one training step needs on a GPU besides `step_workspace`, which counts the same tensors of a CPU.

    A block of the product (2²⁴ bfloat16), parts of cut features (3 rows for every 64 entries) and of ∂L/∂b_dec (a row
    for every 8 features), and 160 bytes for each entry: sorts hold 64-bit places, and there is room for twice as many.
    """
    entries = batch * ENTRIES
    return 2 * 2**24 + 12 * d * entries // 64 + 4 * d * width // 8 + 160 * entries


def _settings(one: Series) -> str:
    ((kind, values),) = one.given.items()
    return f"{kind} = {', '.join(f'{value:g}' for value in values)}"


def _panel(site: str, width: int, found: list[Unit], shape: Outline | None) -> Panel:
    d = shape.width_at(parse_site(site)) if shape else None
    count = sum(unit.site == site and unit.width == width for unit in found)
    return Panel(site, width, d, count, None if d is None else 2 * width * d + VECTORS * width + d)


def _model(config: LMConfig, shape: Outline | None, dtype: str | None) -> str:
    if shape is None:
        return f"{config.model}, not on this machine yet: its shape is not known"
    if config.dtype == "fast":
        kind = f"activations in {dtype}" if dtype else "activations in bfloat16 or float32, decided as the run begins"
    else:
        kind = "in the dtype of its weights" if config.dtype == "auto" else f"in {config.dtype}"
    return f"{config.model}, {shape.blocks} blocks of {shape.d:,} dimensions, {kind}"


def _decided(config: LMConfig, run: store.Run) -> str | None:
    """What `fast` is in this run; None for other dtypes, or before the run began."""
    if config.dtype == "fast" and run.precision.exists() and store.has_inputs(run.precision, of_precision(config)):
        return store.read_json(run.precision)["dtype"]
    return None


def _widths(study: Study, shape: Outline | None) -> list[int]:
    return [shape.width_at(parse_site(site)) for site in study.activations.sites] if shape else []


def _workspace(study: Study, shape: Outline | None) -> int:
    """Bytes beside the SAEs: two blocks of activations, the engine's working memory, the LM."""
    context = study.lm.context or min(1024, shape.context if shape else 1024)
    rows = max(study.activations.block, study.lm.batch) * context
    block = rows * sum(_widths(study, shape)) * DTYPE_BYTES[study.activations.dtype]
    logits = study.lm.batch * context * (shape.vocabulary if shape else 0) * 4
    return (
        2 * block
        + step_workspace(study.train.batch, max(_widths(study, shape), default=0))
        + 2 * logits
        + 2 * ((shape and shape.weights_bytes) or 0)
    )


def step_workspace(batch: int, d: int) -> int:
    """Bytes that one training step needs beside the SAE; steps follow one another, so all SAEs share them.

    A block of the encoder product (2²² entries, float32 at most) + five [B, d] tensors (x − b_dec, its copy in
    bfloat16, x̂ − x for each reconstruction, their targets) + 40 bytes for each entry of the support.
    """
    return 4 * 2**22 + 20 * batch * d + 40 * batch * ENTRIES


def _token_bytes(study: Study, shape: Outline | None, tokens: Tokens) -> int:
    return (tokens.train + tokens.held_out) * (2 if shape and shape.vocabulary <= 2**16 else 4)


def _notes(study: Study, plan: Plan) -> list[str]:
    """What one would want to know before starting."""
    notes = []
    if plan.epochs > 1:
        notes.append(
            f"each training token is seen {plan.epochs:.1f} times: give more text, or fewer train.tokens,"
            " for an SAE that has not seen its data before"
        )
    if plan.tokens.held_out == 0:
        notes.append(
            "no document is held out, so there is nothing to evaluate on: give more documents (a folder, or"
            " text.separator to cut a file into parts), or another text.held_out"
        )
    elif plan.tokens.held_out < study.evaluate.tokens:
        notes.append(
            f"evaluate.tokens asks for {study.evaluate.tokens:,}, the held-out text has fewer: all of it is scored"
        )
    if plan.memory_bytes is not None:
        with_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
        if plan.card is not None and plan.memory_bytes > plan.card.bytes:
            notes.append(
                f"the GPU has {size(plan.card.bytes)} of memory: train fewer SAEs at once, a narrower sae.width, one"
                ' site at a time, or on the CPU (train.device = "cpu")'
            )
        elif plan.card is None and with_memory and plan.memory_bytes > with_memory:
            notes.append(
                f"this machine has {size(with_memory)} of memory: train fewer SAEs at once, a narrower sae.width,"
                " or one site at a time"
            )
    return notes


# ---------------------------------------------------------------------------------------------- tokens


def _tokens(study: Study, run: store.Run) -> Tokens:
    """Counted where the run has tokenised its text, else estimated from its bytes."""
    try:
        heads = [store.read_json(run.tokens / split / "contexts.json") for split in ("train", "held_out")]
        return Tokens(heads[0]["tokens"], heads[1]["tokens"], is_counted=True)
    except (store.ArtefactError, KeyError):
        pass
    train, held_out, sample = _bytes(study.text)
    per_token = _bytes_per_token(study.lm, sample)
    most = study.text.max_tokens or float("inf")
    return Tokens(int(min(most, train / per_token)), int(held_out / per_token), is_counted=False)


def _bytes(config: TextConfig) -> tuple[float, float, str]:
    """Bytes of the training and of the held-out text, and a sample of it."""
    from jumpahead.lm.text import documents, is_held_out

    count = {False: 0, True: 0}
    sample: list[str] = []
    for document in documents(config):
        length = len(document.text.encode("utf-8", "surrogatepass"))
        count[is_held_out(document.identity, config.held_out)] += length
        if sum(map(len, sample)) < 300_000:
            sample.append(document.text[:50_000])
        if sum(count.values()) > ENOUGH_BYTES:
            break
    read = sum(count.values())
    more = max(1.0, _source_bytes(config) / read) if read > ENOUGH_BYTES else 1.0
    return count[False] * more, count[True] * more, "\n".join(sample)


def _source_bytes(config: TextConfig) -> int:
    source = Path(config.source).expanduser()
    if source.is_file():
        return source.stat().st_size
    return sum(path.stat().st_size for path in source.rglob(config.pattern) if path.is_file()) if source.is_dir() else 0


def _bytes_per_token(config: LMConfig, sample: str) -> float:
    """Measured with the model's own tokenizer where it is a tokenizer.json on this machine."""
    folder = model_folder(config)
    file = folder / "tokenizer.json" if folder else None
    if file is None or not file.exists() or not sample:
        return BYTES_PER_TOKEN
    from tokenizers import Tokenizer

    tokens = len(Tokenizer.from_file(str(file)).encode(sample, add_special_tokens=False).ids)
    return len(sample.encode("utf-8", "surrogatepass")) / max(1, tokens)


# ---------------------------------------------------------------------------------------------- time


def measured(study: Study, found: list[Unit], dtype: str | None = None) -> Seconds:
    """Times the LM on a few groups and a few steps of each series' extreme settings, on this machine, now.

    `dtype` is what `lm.dtype = "fast"` was decided to be; None decides it here.
    """
    import torch

    from jumpahead.lm import precision
    from jumpahead.lm.contexts import tokenize
    from jumpahead.lm.model import LM
    from jumpahead.lm.text import documents

    if study.train.threads:
        torch.set_num_threads(study.train.threads)
    sites = list(study.activations.sites)
    if study.lm.dtype == "fast" and dtype is None:
        dtype = precision.decide(study.lm, study.text, sites).dtype
    lm = LM.load(study.lm)
    reader = LM.load(study.lm.model_copy(update={"dtype": dtype}), only=sites) if dtype else lm
    needed = 6 * study.lm.batch * lm.context
    some = itertools.islice(documents(study.text), 2_000)
    contexts = tokenize(some, lm, split="train", held_out=study.text.held_out, max_tokens=needed)
    groups = range(min(contexts.groups, 4))
    rows = int(contexts.rows_per_group[: len(groups)].sum())
    ids = [torch.from_numpy(contexts.ids(group)) for group in groups]
    per_row = _timed(lambda: [reader.read(one, sites) for one in ids]) / rows
    whole = _timed(lambda: [lm.logits(one) for one in ids]) / rows
    total = study.train.steps * study.train.batch
    seen = {}
    for site in sites:
        values = torch.cat(
            [
                reader.read(one, [site])[site].flatten(0, 1).cpu()[torch.from_numpy(contexts.trained(g).ravel())]
                for g, one in enumerate(ids)
            ]
        )
        seen[site] = values.float() / values.float().square().sum(1).mean().sqrt()
    steps = sum(_step_seconds(study, found, site, width, seen[site]) for site in sites for width in study.sae.width)
    return Seconds(
        stream=per_row * total * len(study.stream.seed),
        saes=steps * study.train.steps,
        evaluation=whole * study.evaluate.tokens * (1 + len(found)),
    )


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the second call."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _step_seconds(study: Study, found: list[Unit], site: str, width: int, x: Tensor) -> float:
    """Seconds that one step of all SAEs of a panel takes: the mean of each series' extremes × its SAEs."""
    total = 0.0
    batch = (
        x[: study.train.batch]
        if len(x) >= study.train.batch
        else x.repeat(-(-study.train.batch // len(x)), 1)[: study.train.batch]
    )
    for one in study.series:
        extremes = sorted(one.settings, key=lambda setting: setting.value)
        times = [_one_step(study, one, setting, width, batch) for setting in {extremes[0], extremes[-1]}]
        count = sum(unit.site == site and unit.width == width and unit.series.name == one.name for unit in found)
        total += count * sum(times) / len(times)
    return total


def _one_step(study: Study, one: Series, setting: Any, width: int, x: Tensor) -> float:
    from jumpahead import sae
    from jumpahead.engine import fresh_state, kernels, settle, step
    from jumpahead.sae.recipe import Shape
    from jumpahead.train import device_for

    x = x.to(device_for(study.train))
    kind, layer = sae.architecture(one.architecture), kernels(device=x.device)
    rules = kind.recipe_for(study.train, Shape(x.shape[1], width, setting), one.recipe)
    arch = kind(kind.Options(**one.options), setting, rules)
    state = fresh_state(arch, x.shape[1], width, 0, x)
    rate = rules.lr * 1e-3  # hardly moves: what is timed is the start

    def two() -> None:
        for _ in range(2):
            step(state, x, rate, 1.0, layer)
        settle(state, layer)

    return _timed(two) / 2
