"""What a study will do, before it does anything: SAEs, tokens, disk, memory, and with a short probe, time.

P = 2·M·d + M·(vectors) + d  parameters of one SAE

    memory    10 bytes per parameter of every SAE that trains at once (fp32 value and second moment, bf16 copy of W_enc)
              + two blocks of activations (the one in use, and the next where it is read ahead)
              + one step's working memory (`step_workspace`) + the LM
    disk      4 bytes per parameter and SAE, 8 more while it trains (a checkpoint), the token ids, activations if kept
              (rows · (Σ_sites d · itemsize + 12), of the text that is trained on and of what is scored)
    time      probe.py

Nothing heavy is imported unless time is measured.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import textwrap
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jumpahead import store
from jumpahead.activations import WITHOUT_LM, row_bytes, ways_to_fit
from jumpahead.activations.origins import ORIGINS
from jumpahead.errors import ArtefactError
from jumpahead.formatting import duration, size
from jumpahead.lm.config import LMConfig
from jumpahead.lm.fingerprint import of_precision
from jumpahead.lm.model_shape import Outline, model_folder, outline
from jumpahead.lm.sites import parse_site
from jumpahead.nouns import TEXT, Nouns
from jumpahead.planning.measure import Seconds, measured, measured_without_lm
from jumpahead.study.schema import Series, Study, Unit, units
from jumpahead.text.sources import source_of

if TYPE_CHECKING:
    from jumpahead.text.source import Source

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
    is_known: bool = True
    """False: the text is not at hand yet; as much as the study asks for is taken to be there."""
    context: int = 0
    """In conversations, tokens of roles that are neither trained on nor scored, of both splits."""


class Panel(NamedTuple):
    """One site and width."""

    site: str
    width: int
    d: int | None
    """None where the model's shape is not known on this machine."""
    saes: int
    parameters: int | None
    """Of one SAE."""


class Kept(NamedTuple):
    """Activations on disk."""

    bytes: int
    """All of them."""
    there: int
    """What is there already."""
    free: int
    """On that disk."""


class Card(NamedTuple):
    """A GPU, and what of the study it holds."""

    name: str
    bytes: int
    fits: str
    """How many SAEs of which width fit at once: a clause."""


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
    kept: Kept | None = None
    """The activations, where the study keeps them on disk; part of `disk_bytes`."""
    seconds: Seconds | None = None
    card: Card | None = None
    """The GPU here that SAEs would train on."""
    notes: list[str] = field(default_factory=list)
    nouns: Nouns = TEXT
    """What the activations are called."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes, times in seconds."""
        plain = asdict(self)
        del plain["nouns"]
        plain["tokens"] = self.tokens._asdict()
        plain["card"] = self.card and self.card._asdict()
        plain["panels"] = [panel._asdict() for panel in self.panels]
        plain["kept"] = self.kept and self.kept._asdict()
        plain["seconds"] = self.seconds and {**self.seconds._asdict(), "total": self.seconds.total}
        return plain

    def facts(self) -> list[tuple[str, str]]:
        """What, and how much: the rows of the table."""
        nouns = self.nouns
        train, held_out = (self._count(tokens) for tokens in self.tokens[:2])
        rows = [("model", self.model)]
        for panel in self.panels:
            shape = f"{panel.saes} SAEs of {panel.width:,} features"
            if panel.d is not None and panel.parameters is not None:
                shape += f" × {panel.d:,} dimensions, {panel.parameters:,} parameters each"
            rows.append((panel.site, shape))
        rows += list(self.series.items())
        rows.append(("SAEs", f"{self.saes}" + (f", of which {self.found} are in {self.folder}" if self.found else "")))
        rows.append((nouns("training text"), nouns(f"{train} tokens")))
        if self.tokens.context:
            rows.append(("other roles", f"{self._count(self.tokens.context)} tokens, read as context"))
        times = nouns("each token") + f" {self.epochs:.1f} times" if self.epochs > 1 else ""
        times = times or f"{100 * self.epochs:.0f} % of the {'rows' if nouns.of_rows else 'text'}"
        times = f": {times}" if self.tokens.is_known else ""
        rows.append(("trained on", f"{self.train_tokens:,} activations per SAE{times}"))
        scored = self._count(self.scored_tokens) if self.tokens.is_known else f"at most {self.scored_tokens:,}"
        rows.append((nouns("held-out text"), nouns(f"{held_out} tokens, of which {scored} are scored")))
        if self.memory_bytes is not None:
            rows.append(("memory", f"about {size(self.memory_bytes)}"))
        if self.card is not None:
            rows.append(("GPU", f"{self.card.name}, {size(self.card.bytes)}; {self.card.fits}"))
        if self.disk_bytes is not None and self.disk_bytes_training is not None:
            rows.append(("disk", f"about {size(self.disk_bytes)}; {size(self.disk_bytes_training)} while training"))
        if self.kept is not None:
            there = f", {size(self.kept.there)} are there" if self.kept.there else ""
            rows.append(("activations", f"{size(self.kept.bytes)} of that{there}; {size(self.kept.free)} are free"))
        if self.seconds is not None:
            named = zip(("start", "LM", "SAEs", "evaluation", "intervals"), self.seconds, strict=True)
            parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in named)
            rows.append(("time", f"roughly {duration(self.seconds.total)}: {parts}"))
        else:
            rows.append(("time", "unknown: --measure times a few steps on this machine"))
        return rows

    def _count(self, tokens: int) -> str:
        """Exact where it was counted or asked for, else to two digits."""
        if not self.tokens.is_known:
            return "an unknown number of"
        if self.tokens.is_counted or tokens not in (*self.tokens[:2], self.tokens.context):
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
    if study.activations.origin in WITHOUT_LM:
        return _without_lm(study, run, measure=measure)
    shape = outline(study.lm)
    panels = [
        _panel(site, width, found, shape and shape.width_at(parse_site(site)))
        for site in study.activations.sites
        for width in study.sae.width
    ]
    source = source_of(study.text, run.folder)
    tokens = _tokens(study, run, source)
    dtype, seconds = _decided(study.lm, run), None
    kept = _kept(study, run, shape, tokens)
    from_disk = kept and kept.bytes // row_bytes(_widths(study, shape), DTYPE_BYTES[study.activations.dtype])
    if measure:
        new = 0 if tokens.is_counted else tokens.train + tokens.held_out + tokens.context
        scored = min(study.evaluate.tokens, tokens.held_out)
        seconds = measured(study, source, dtype=dtype, kept=from_disk, new=new, scored=scored)
    beside = _token_bytes(study, shape, tokens) + (kept.bytes if kept else 0)
    return _assembled(
        study, run, panels, tokens, _model(study.lm, shape, dtype), beside, _workspace(study, shape), kept, seconds
    )


def _assembled(
    study: Study, run: store.Run, panels: list[Panel], tokens: Tokens, model: str, beside: int, workspace: int,
    kept: Kept | None, seconds: Seconds | None, nouns: Nouns = TEXT,
) -> Plan:  # fmt: skip
    """beside, workspace: bytes on disk and in memory that are no SAE's."""
    found = units(study)
    known = [panel for panel in panels if panel.parameters is not None]
    parameters = sum(panel.saes * (panel.parameters or 0) for panel in panels) if len(known) == len(panels) else None
    at_once = None if parameters is None else parameters // len(study.stream.seed)  # streams are run one by one
    disk = None if parameters is None else 4 * parameters + 300_000 * len(found) + beside
    plan = Plan(
        name=study.name,
        folder=str(run.folder),
        model=model,
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
        memory_bytes=None if at_once is None else 10 * at_once + workspace,
        kept=kept,
        seconds=seconds,
        nouns=nouns,
    )
    if study.train.device != "cpu" and (found_card := gpu()) is not None:
        plan = replace(plan, card=Card(*found_card, _fits(study, workspace, known, found_card[1])))
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


def _fits(study: Study, workspace: int, panels: list[Panel], room: int) -> str:
    """How many SAEs train at once on a GPU with so many bytes, beside the LM and the activations."""
    if not panels:
        return "how many SAEs fit is not known before the model's shape is"
    widest = max(panels, key=lambda panel: panel.parameters or 0)
    left = room - workspace - gpu_workspace(study.train.batch, widest.d or 0, widest.width)
    count = max(0, int(left // (10 * (widest.parameters or 1))))
    return f"{count} SAEs of {widest.width:,} features fit at once"


def gpu_workspace(batch: int, d: int, width: int) -> int:
    """Bytes that one training step needs on a GPU besides `step_workspace`, which counts the same tensors of a CPU.

    The product in bfloat16, as far as TopK keeps it (`KEPT` in engine/cuda), and a bit for each of its entries; parts
    of cut features (3 rows for every 64 entries) and of ∂L/∂b_dec (a row for every 8 features), and 160 bytes for each
    entry of the support: sorts hold 64-bit places, and there is room for twice as many.
    """
    entries, product = batch * ENTRIES, batch * width
    marked = 2 * min(2**29, product) + product // 8
    return marked + 12 * d * entries // 64 + 4 * d * width // 8 + 160 * entries


def _settings(one: Series) -> str:
    ((kind, values),) = one.given.items()
    return f"{kind} = {', '.join(f'{value:g}' for value in values)}"


def _without_lm(study: Study, run: store.Run, *, measure: bool) -> Plan:
    """Of activations that no language model makes: all of their counts are exact."""
    data = ORIGINS.get(study.activations.origin).open(study.activations, folder=run.activations)
    found, held_out = units(study), data.held_out
    assert held_out is not None
    panels = [_panel(site, width, found, d) for site, d in data.widths.items() for width in study.sae.width]
    tokens = Tokens(data.total, held_out.total, is_counted=True)
    block = (
        int(sorted(data.rows_per_group)[-1])
        * data.groups_per_block
        * sum(data.widths.values())
        * DTYPE_BYTES[study.activations.dtype]
    )
    memory = 2 * block + step_workspace(study.train.batch, max(data.widths.values()), threads(study))
    seconds = measured_without_lm(study, data, held_out) if measure else None
    return _assembled(
        study, run, panels, tokens, "none: activations from elsewhere", 0, memory, None, seconds, Nouns(of_rows=True)
    )


def _kept(study: Study, run: store.Run, shape: Outline | None, tokens: Tokens) -> Kept | None:
    """The activations on disk; None where the study keeps none, or the model's shape is not known."""
    if study.activations.origin != "shards" or shape is None:
        return None
    rows = tokens.train + min(tokens.held_out, study.evaluate.tokens)
    if tokens.is_counted:
        rows = _exact_rows(study, run) or rows
    there = sum(path.stat().st_size for path in run.activations.rglob("shard-*.safetensors"))
    row = row_bytes(_widths(study, shape), DTYPE_BYTES[study.activations.dtype])
    return Kept(rows * row, there, store.free_bytes(run.folder))


def _exact_rows(study: Study, run: store.Run) -> int | None:
    """Activations of the training text, and of the groups that are evaluated on; None without tokens."""
    import numpy as np

    from jumpahead.text.contexts import Contexts

    try:
        train, held_out = (Contexts.load(run.tokens / split) for split in ("train", "held_out"))
    except ArtefactError:
        return None
    groups = int(np.searchsorted(np.cumsum(held_out.scored_per_group), study.evaluate.tokens)) + 1
    return train.rows + int(held_out.rows_per_group[:groups].sum())


def _panel(site: str, width: int, found: list[Unit], d: int | None) -> Panel:
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
    """Of the sites whose width the model's config tells."""
    found = [shape.width_at(parse_site(site)) for site in study.activations.sites] if shape else []
    return [width for width in found if width is not None]


def _workspace(study: Study, shape: Outline | None) -> int:
    """Bytes beside the SAEs: two blocks of activations, the engine's working memory, the LM."""
    context = study.lm.context or min(1024, shape.context if shape else 1024)
    rows = max(study.activations.block, study.lm.batch) * context
    block = rows * sum(_widths(study, shape)) * DTYPE_BYTES[study.activations.dtype]
    logits = study.lm.batch * context * (shape.vocabulary if shape else 0) * 4
    return (
        2 * block
        + step_workspace(study.train.batch, max(_widths(study, shape), default=0), threads(study))
        + 2 * logits
        + 2 * ((shape and shape.weights_bytes) or 0)
    )


def threads(study: Study) -> int:
    """CPU threads that training uses, at most."""
    return study.train.threads or os.cpu_count() or 1


def step_workspace(batch: int, d: int, threads: int) -> int:
    """Bytes that training steps need beside the SAEs; as many are done at the same time as there are threads, at most.

    Per thread a block of the encoder product (2²⁰ entries, float32 at most) + five [B, d] tensors (x − b_dec, its copy
    in bfloat16, x̂ − x for each reconstruction, their targets) + 40 bytes for each entry of the support.
    """
    return threads * (4 * 2**20 + 20 * batch * d + 40 * batch * ENTRIES)


def _token_bytes(study: Study, shape: Outline | None, tokens: Tokens) -> int:
    each = (2 if shape and shape.vocabulary <= 2**16 else 4) + (study.text.chat is not None)
    return (tokens.train + tokens.held_out + tokens.context) * each


def _notes(study: Study, plan: Plan) -> list[str]:
    """What one would want to know before starting."""
    notes = []
    if not plan.tokens.is_known:
        notes.append(
            f"how much text '{study.text.source}' holds is seen when the run reads it: with less than train.tokens each"
            " token is seen more than once"
        )
    elif plan.epochs > 1:
        notes.append(
            plan.nouns("each training token is seen ")
            + f"{plan.epochs:.1f} times: give more {'rows' if plan.nouns.of_rows else 'text'}, or fewer train.tokens,"
            " for an SAE that has not seen its data before"
        )
    if plan.tokens.held_out == 0:
        notes.append(
            "no document is held out, so there is nothing to evaluate on: give more documents (a folder, or"
            " text.separator to cut a file into parts), or another text.held_out"
        )
    elif plan.tokens.held_out < study.evaluate.tokens:
        held_out = plan.nouns(f"only {plan.tokens.held_out:,} held-out tokens")
        notes.append(f"evaluate.tokens asks for {study.evaluate.tokens:,}, and there are {held_out}: all are scored")
    if plan.kept is not None and plan.kept.bytes - plan.kept.there > plan.kept.free:
        ways = ways_to_fit(len(study.activations.sites), study.activations.dtype)
        notes.append(f"the activations do not fit on the disk: {ways}")
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


def _tokens(study: Study, run: store.Run, source: Source) -> Tokens:
    """Counted where the run has tokenised its text, else estimated from its bytes."""
    try:
        heads = [store.read_json(run.tokens / split / "contexts.json") for split in ("train", "held_out")]
        train, held_out = (head.get("chosen", head["tokens"]) for head in heads)
        context = sum(head["tokens"] for head in heads) - train - held_out
        return Tokens(train, held_out, is_counted=True, context=context)
    except (store.ArtefactError, KeyError):
        pass
    most = study.text.max_tokens or float("inf")
    if source.total is None:
        return Tokens(int(min(most, study.train.tokens)), int(min(most, study.evaluate.tokens)), False, is_known=False)
    train, held_out, chosen, sample = _bytes(source, source.total)
    per_token = _bytes_per_token(study.lm, sample)
    train, held_out = min(most, train / per_token), held_out / per_token
    context = int((1 - chosen) * (train + held_out))
    return Tokens(int(chosen * train), int(chosen * held_out), is_counted=False, context=context)


def _bytes(source: Source, total: int) -> tuple[float, float, float, str]:
    """Bytes of the training and of the held-out text, which share of them is trained on or scored, and a sample."""
    from jumpahead.text.documents import documents, is_held_out

    count = {False: 0, True: 0}
    chosen = 0
    """Of conversations, what is said by the roles that are trained on."""
    sample: list[str] = []
    more = 1.0
    for document in documents(source):
        chosen += len(document.chat.chosen.encode()) if document.chat else 0
        for text in itertools.chain([document.text], document.rest):
            count[is_held_out(document.identity, source.config.held_out)] += len(text.encode("utf-8", "surrogatepass"))
            if sum(map(len, sample)) < 300_000:
                sample.append(text[:50_000])
            if sum(count.values()) > ENOUGH_BYTES:
                break
        if sum(count.values()) > ENOUGH_BYTES:
            more = max(1.0, total / max(1, source.done))
            break
    share = chosen / max(1, sum(count.values())) if source.config.chat else 1.0
    return count[False] * more, count[True] * more, share, "\n".join(sample)


def _bytes_per_token(config: LMConfig, sample: str) -> float:
    """Measured with the model's own tokenizer where it is a tokenizer.json on this machine."""
    folder = model_folder(config)
    file = folder / "tokenizer.json" if folder else None
    if file is None or not file.exists() or not sample:
        return BYTES_PER_TOKEN
    from tokenizers import Tokenizer

    tokens = len(Tokenizer.from_file(str(file)).encode(sample, add_special_tokens=False).ids)
    return len(sample.encode("utf-8", "surrogatepass")) / max(1, tokens)
