"""The plan of a study, before any work: SAEs, tokens, disk, memory, and time if it is measured.

An SAE of M features on d dimensions has P = 2·M·d + M·(vectors of length M) + d parameters.

    memory    14 bytes per parameter of every SAE that trains at once (float32 value and two moments, bfloat16 copy of
              W_enc; 10 without momentum) + two blocks of activations (the current one and a prefetched one)
              + the working memory of one step (memory.py) + the language model; or more, if the evaluation of the
              SAEs of one site needs more than their training
    disk      4 bytes per parameter and SAE, 12 more during training (a checkpoint), the token ids, and stored
              activations (rows · (Σ_sites d · itemsize + 12), of the training text and of the scored text)
    time      measure.py

Nothing heavy is imported unless time is measured, or the run's folder holds something.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jumpahead.activations.disk_size import bytes_per_row
from jumpahead.activations.origins import ORIGINS
from jumpahead.errors import ArtefactError
from jumpahead.formatting import ROWS, TOKENS, SampleUnit
from jumpahead.lm.config import LMConfig
from jumpahead.lm.fingerprint import dtype_choice_digest
from jumpahead.lm.model_shape import ModelShape, read_model_shape
from jumpahead.lm.sites import parse_site
from jumpahead.planning.measure import StudySeconds, measure_study, measure_study_without_lm
from jumpahead.planning.memory import (
    CHECKPOINT_BYTES,
    DTYPE_BYTES,
    PROCESS_BYTES,
    TRAINING_BYTES,
    detect_gpu,
    evaluation_bytes,
    known_site_widths,
    max_threads,
    saes_that_fit,
    step_workspace,
    workspace_bytes,
)
from jumpahead.planning.notes import plan_notes
from jumpahead.planning.table import GPUCapacity, PanelPlan, Plan, StoredActivations, TokenCounts
from jumpahead.planning.todo import Todo, find_todo
from jumpahead.planning.tokens import count_or_estimate_tokens
from jumpahead.resampling import MOST_CLUSTERS
from jumpahead.storage.digests import has_inputs
from jumpahead.storage.folders import free_disk_bytes
from jumpahead.storage.json_files import read_json
from jumpahead.storage.run_folder import Run
from jumpahead.study.schema import SAESpec, Series, Study, sae_specs
from jumpahead.text.sources import source_of

MAX_VECTORS = 3
"""Upper bound of an SAE's parameter vectors of length M (Gated: b_enc, b_mag, r_mag)."""


def make_plan(study: Study, folder: str | Path, *, measure: bool = False) -> Plan:
    """Return the plan of a study whose run is in `folder`, or will be. measure: time a few steps first."""
    run, specs = Run(folder), sae_specs(study)
    if not ORIGINS.get(study.activations.origin).needs_lm:
        return _plan_without_lm(study, run, measure=measure)
    shape = read_model_shape(study.lm)
    panels = [
        _panel_plan(site, width, specs, shape and shape.width_at(parse_site(site)))
        for site in study.activations.sites
        for width in study.sae.width
    ]
    source = source_of(study.text, run.folder)
    tokens = count_or_estimate_tokens(study, run, source)
    dtype, seconds = _chosen_dtype(study.lm, run), None
    stored = _stored_activations(study, run, shape, tokens)
    stored_rows = stored and stored.bytes // bytes_per_row(
        known_site_widths(study, shape), DTYPE_BYTES[study.activations.dtype]
    )
    if measure:
        new = 0 if tokens.is_counted else tokens.train + tokens.held_out + tokens.context
        scored = min(study.evaluate.tokens, tokens.held_out)
        seconds = measure_study(
            study, source, dtype=dtype, stored_rows=stored_rows, new_tokens=new, scored_tokens=scored
        )
    data_bytes = _token_bytes(study, shape, tokens) + (stored.bytes if stored else 0)
    workspace = workspace_bytes(study, shape)
    return _assemble_plan(
        study, run, panels, tokens, _model_row(study.lm, shape, dtype), data_bytes, workspace, stored, seconds,
        find_todo(study, run, lambda: source),
    )  # fmt: skip


def _assemble_plan(
    study: Study, run: Run, panels: list[PanelPlan], tokens: TokenCounts, model: str, data_bytes: int, workspace: int,
    stored: StoredActivations | None, seconds: StudySeconds | None, todo: Todo, unit: SampleUnit = TOKENS,
) -> Plan:  # fmt: skip
    """Return the plan with its totals. data_bytes, workspace: bytes on disk and in memory besides the SAEs."""
    specs = sae_specs(study)
    known = [panel for panel in panels if panel.parameters is not None]
    parameters = sum(panel.saes * (panel.parameters or 0) for panel in panels) if len(known) == len(panels) else None
    # The SAEs of different stream seeds train one after the other.
    at_once = None if parameters is None else parameters // len(study.stream.seed)
    disk = None if parameters is None else 4 * parameters + 300_000 * len(specs) + data_bytes
    plan = Plan(
        name=study.name,
        folder=str(run.folder),
        model=model,
        panels=panels,
        series={series.name: _format_settings(series) for series in study.series},
        saes=len(specs),
        finished_saes=todo.finished,
        todo=todo.sentences,
        tokens=tokens,
        train_tokens=study.train.steps * study.train.batch,
        epochs=study.train.steps * study.train.batch / max(1, tokens.train),
        scored_tokens=min(study.evaluate.tokens, tokens.held_out),
        disk_bytes=disk,
        disk_bytes_training=None if disk is None or at_once is None else disk + CHECKPOINT_BYTES * at_once,
        memory_bytes=None
        if at_once is None
        else PROCESS_BYTES
        + workspace
        + max(TRAINING_BYTES * at_once, evaluation_bytes(known, MOST_CLUSTERS, study.evaluate.replicates)),
        stored_activations=stored,
        seconds=seconds,
        unit=unit,
    )
    if study.train.device != "cpu" and (gpu := detect_gpu()) is not None:
        plan = replace(plan, gpu=GPUCapacity(*gpu, saes_that_fit(study, workspace, known, gpu[1])))
    plan.notes.extend(plan_notes(study, plan))
    return plan


def _format_settings(series: Series) -> str:
    """Return the sparsity settings of a series: `l0 = 4, 8, 16`."""
    ((kind, values),) = series.settings_by_kind.items()
    return f"{kind} = {', '.join(f'{value:g}' for value in values)}"


def _plan_without_lm(study: Study, run: Run, *, measure: bool) -> Plan:
    """Return the plan of a study on activations without a language model; their number is known exactly."""
    data = ORIGINS.get(study.activations.origin).open(study.activations, folder=run.activations)
    specs, held_out = sae_specs(study), data.held_out
    assert held_out is not None
    panels = [_panel_plan(site, width, specs, d) for site, d in data.widths.items() for width in study.sae.width]
    tokens = TokenCounts(data.total_rows, held_out.total_rows, is_counted=True)
    block = (
        int(sorted(data.rows_per_group)[-1])
        * data.groups_per_block
        * sum(data.widths.values())
        * DTYPE_BYTES[study.activations.dtype]
    )
    memory = 2 * block + step_workspace(study.train.batch, max(data.widths.values()), max_threads(study))
    seconds = measure_study_without_lm(study, data, held_out) if measure else None
    return _assemble_plan(
        study, run, panels, tokens, "none: activations without a language model", 0, memory, None, seconds,
        find_todo(study, run, lambda: source_of(study.text, run.folder)), ROWS,
    )  # fmt: skip


def _stored_activations(
    study: Study, run: Run, shape: ModelShape | None, tokens: TokenCounts
) -> StoredActivations | None:
    """Return the size of the activations on disk; None if the study stores none, or the model's shape is unknown."""
    if not ORIGINS.get(study.activations.origin).on_disk or shape is None:
        return None
    rows = tokens.train + min(tokens.held_out, study.evaluate.tokens)
    if tokens.is_counted:
        rows = _count_stored_rows(study, run) or rows
    present = sum(path.stat().st_size for path in run.activations.rglob("shard-*.safetensors"))
    row = bytes_per_row(known_site_widths(study, shape), DTYPE_BYTES[study.activations.dtype])
    return StoredActivations(rows * row, present, free_disk_bytes(run.folder))


def _count_stored_rows(study: Study, run: Run) -> int | None:
    """Return the number of activations of the training text and of the scored groups; None before tokenisation."""
    import numpy as np

    from jumpahead.text.contexts import Contexts

    try:
        train, held_out = (Contexts.load(run.tokens / split) for split in ("train", "held_out"))
    except ArtefactError:
        return None
    groups = int(np.searchsorted(np.cumsum(held_out.scored_per_group), study.evaluate.tokens)) + 1
    return train.rows + int(held_out.rows_per_group[:groups].sum())


def _panel_plan(site: str, width: int, specs: list[SAESpec], d: int | None) -> PanelPlan:
    """Return the number of SAEs of a site and width, and the parameters of each if d is known."""
    count = sum(spec.site == site and spec.width == width for spec in specs)
    return PanelPlan(site, width, d, count, None if d is None else 2 * width * d + MAX_VECTORS * width + d)


def _model_row(config: LMConfig, shape: ModelShape | None, dtype: str | None) -> str:
    """Return the model's name, shape and dtype. dtype: the one chosen for `fast`, if it is chosen already."""
    if shape is None:
        return f"{config.model}, not on this machine yet: its shape is unknown"
    if config.dtype == "fast":
        kind = f"activations in {dtype}" if dtype else "activations in bfloat16 or float32, chosen when the run starts"
    else:
        kind = "in the dtype of its weights" if config.dtype == "auto" else f"in {config.dtype}"
    return f"{config.model}, {shape.num_blocks} blocks of {shape.d_model:,} dimensions, {kind}"


def _chosen_dtype(config: LMConfig, run: Run) -> str | None:
    """Return the dtype that this run has chosen for `fast`; None for other dtypes, or before the choice."""
    if config.dtype == "fast" and run.precision.exists() and has_inputs(run.precision, dtype_choice_digest(config)):
        return read_json(run.precision)["dtype"]
    return None


def _token_bytes(study: Study, shape: ModelShape | None, tokens: TokenCounts) -> int:
    """Return the bytes of the token ids on disk, and of the mask of trained tokens in conversations."""
    each = (2 if shape and shape.vocab_size <= 2**16 else 4) + (study.text.chat is not None)
    return (tokens.train + tokens.held_out + tokens.context) * each
