"""Titles of methods, stages and columns, used by the table, the page and the JSON. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Method(NamedTuple):
    """An implementation of a training step."""

    title: str
    short: str


METHODS = {
    "engine": Method("jumpahead", "jumpahead"),
    "dense": Method("dense recipe", "dense recipe"),
    "approximate": Method("dense, approximate top-k", "approx. top-k"),
}


class StepStage(NamedTuple):
    """A part of a training step."""

    title: str
    short: str
    """Title of a narrow column."""
    colour: str


STAGES = {
    "product": StepStage("encoder product", "enc", "#0072B2"),
    "selection": StepStage("elementwise and selection", "sel", "#56B4E9"),
    "decode": StepStage("decode", "dec", "#009E73"),
    "auxiliary": StepStage("auxiliary loss", "aux", "#CC79A7"),
    "backward": StepStage("backward", "back", "#D55E00"),
    "optimizer": StepStage("optimizer", "Adam", "#E69F00"),
    "rows": StepStage("backward and optimizer in one pass", "rows", "#8C3B00"),
    "dense_features": StepStage("products of frequently active features", "freq", "#117733"),
    "rule": StepStage("rule and bookkeeping", "rule", "#7A7A7A"),
}
"""In the order of execution."""
OTHER_COLOURS = ("#AA4499", "#332288", "#999933", "#661100")
"""Colours of unlisted stages: kernel-layer methods that are missing in STAGES."""


class Measure(NamedTuple):
    """A column: the key in a row, and how its value is shown."""

    key: str
    short: str
    unit: str
    scale: float
    """The value is multiplied by this."""
    meaning: str


MEASURES = (
    Measure("ms", "ms", "per step", 1, "Time of one step, median"),
    Measure("tokens_per_s", "tokens/s", "", 1, "Tokens per second of one SAE in training"),
    Measure("entries", "|S|", "", 1, "Entries of the support per token"),
    Measure("flops", "GFLOP", "", 1e-9, "Multiplications and additions of one step, from formulas"),
    Measure("bytes", "GB", "moved", 1e-9, "Lower bound on what one step reads and writes, from formulas"),
    Measure("peak_bytes", "MB", "peak", 1e-6, "Memory of one step beyond parameters, moments and batch, measured"),
    Measure("hours_1e9", "hours", "to 1e9", 1, "Hours of training on 1e9 tokens at this rate"),
    Measure("hours_8e9", "hours", "to 8e9", 1, "Hours of training on 8e9 tokens at this rate"),
)
TOKEN_BUDGETS = {"hours_1e9": 1e9, "hours_8e9": 8e9}
"""Column → training tokens."""


def stages_in(rows: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the stages in which any row spent time, in the order of STAGES; unlisted ones last, titled by key."""
    found = {key for row in rows for key, ms in row["stages"].items() if ms > 0}
    known = [{"key": key, **stage._asdict()} for key, stage in STAGES.items() if key in found]
    others = [
        {"key": key, "title": key, "short": key, "colour": OTHER_COLOURS[i % len(OTHER_COLOURS)]}
        for i, key in enumerate(sorted(found - STAGES.keys()))
    ]
    return known + others


def notes(dead: float, has_memory: bool) -> list[str]:
    """Return sentences on how the numbers were measured.

    dead: the share of features that count as dead. has_memory: whether peak memory was measured.
    """
    memory = (
        "Memory: the rise of the process's resident memory in one step, beyond parameters, moments and batch, from the "
        "system's high-water mark. Scratch memory is included."
        if has_memory
        else "Memory: not measured. This system has no resettable high-water mark."
    )
    return [
        "Dense recipe: the architecture's loss on dense tensors, autograd, removal of the decoder gradient's radial "
        "component, torch's fused Adam over all parameters, renormalisation; float32, with the fastest library on this "
        "machine. Top-k by torch.topk.",
        "Approximate top-k: the maximum of each group of features, then the k largest maxima; groups are sized for a "
        "recall of 95 %.",
        "Time: medians over rounds. The methods of an architecture alternate. Each round has one plain step (ms) and "
        "one profiled step (stages), so the stages do not add up exactly to the step.",
        "A profiled step has timers around every operation of the dense forward pass, around autograd and around the "
        "optimizer; for jumpahead, around every kernel call.",
        "Stages of jumpahead: the encoder product is the matrix product inside the support search. Screening and "
        "recomputation count as elementwise and selection; sums per feature count as backward.",
        "Rule and bookkeeping is all time outside kernel calls.",
        "FLOPs and bytes: from formulas in tokens, dimensions, features, |S| and touched rows. Bytes are a lower "
        "bound: every operand once per pass.",
        memory,
        "Data: activations of unit mean square from a synthetic sparse dictionary. SAEs are as at the start of "
        "training with the short recipe, with thresholds at the requested L0.",
        f"{100 * dead:g} % of the features count as dead in architectures with a loss for dead features.",
    ]
