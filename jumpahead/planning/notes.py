"""Warnings of a plan: repeated text, too little held-out text, too little disk or memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

from jumpahead.activations.disk_size import disk_full_advice
from jumpahead.formatting import format_bytes
from jumpahead.pipeline.target_search import MAX_ROUNDS
from jumpahead.planning.table import Plan
from jumpahead.study.schema import Study


def plan_notes(study: Study, plan: Plan) -> list[str]:
    """Return a sentence, without a full stop, for everything in the plan that the user should know or change."""
    return [*_text_notes(study, plan), *_disk_notes(study, plan), *_memory_notes(plan), *_target_notes(study)]


def _target_notes(study: Study) -> Iterator[str]:
    """Yield a note on the SAEs that the search for requested losses adds, which the plan does not count."""
    losses = sum(len(series.delta_loss) for series in study.series) * len(study.activations.sites)
    if losses:
        most = MAX_ROUNDS * losses * len(study.sae.width) * len(study.sae.seed) * len(study.stream.seed)
        yield f"delta_loss trains up to {most} more SAEs, which this plan does not count"


def _text_notes(study: Study, plan: Plan) -> Iterator[str]:
    """Yield notes on the amount of training and of held-out text."""
    if not plan.tokens.is_known:
        yield (
            f"the amount of text in '{study.text.source}' is unknown until the run reads it: with fewer tokens than "
            "train.tokens, tokens are repeated"
        )
    elif plan.epochs > 1:
        yield (
            f"each training {plan.unit.singular} is seen {plan.epochs:.1f} times: give more {plan.unit.text}, or fewer "
            "train.tokens, to train on each only once"
        )
    if plan.tokens.held_out == 0:
        yield (
            "no document is held out for the evaluation: give more documents (a folder, or text.separator to split a "
            "file), or a larger text.held_out"
        )
    elif plan.tokens.held_out < study.evaluate.tokens:
        held_out = f"only {plan.tokens.held_out:,} held-out {plan.unit.plural}"
        yield f"evaluate.tokens asks for {study.evaluate.tokens:,}, and there are {held_out}: all are scored"


def _disk_notes(study: Study, plan: Plan) -> Iterator[str]:
    """Yield a note if the activations do not fit on the disk."""
    stored = plan.stored_activations
    if stored is not None and stored.bytes - stored.present > stored.free:
        advice = disk_full_advice(len(study.activations.sites), study.activations.dtype)
        yield f"the activations do not fit on the disk: {advice}"


def _memory_notes(plan: Plan) -> Iterator[str]:
    """Yield a note if the GPU, or this machine without a GPU, has too little memory."""
    if plan.memory_bytes is None:
        return
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    if plan.gpu is not None and plan.memory_bytes > plan.gpu.bytes:
        yield (
            f"the GPU has {format_bytes(plan.gpu.bytes)} of memory: train fewer SAEs at once, a smaller sae.width, "
            'one site at a time, or on the CPU (train.device = "cpu")'
        )
    elif plan.gpu is None and machine_bytes and plan.memory_bytes > machine_bytes:
        yield (
            f"this machine has {format_bytes(machine_bytes)} of memory: train fewer SAEs at once, a smaller sae.width, "
            "or one site at a time"
        )
