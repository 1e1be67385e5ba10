"""What is measured, and what it is called: the table, the page and the JSON take it from here. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Method(NamedTuple):
    """A way to compute a step."""

    title: str
    short: str


METHODS = {
    "engine": Method("jumpahead", "jumpahead"),
    "dense": Method("dense recipe", "dense recipe"),
    "approximate": Method("dense, approximate top-k", "approx. top-k"),
}


class Stage(NamedTuple):
    """A part of a step."""

    title: str
    short: str
    """For a narrow column."""
    colour: str


STAGES = {
    "product": Stage("encoder product", "enc", "#0072B2"),
    "selection": Stage("elementwise and selection", "sel", "#56B4E9"),
    "decode": Stage("decode", "dec", "#009E73"),
    "auxiliary": Stage("auxiliary loss", "aux", "#CC79A7"),
    "backward": Stage("backward", "back", "#D55E00"),
    "optimizer": Stage("optimizer", "Adam", "#E69F00"),
    "rows": Stage("backward and optimizer in one pass", "rows", "#8C3B00"),
    "popular": Stage("products of features that are often on", "often", "#117733"),
    "rule": Stage("rule and bookkeeping", "rule", "#7A7A7A"),
}
"""In the order of a step."""
OTHER_COLOURS = ("#AA4499", "#332288", "#999933", "#661100")
"""Of stages that are not in the list: methods of a kernel layer that have no place there yet."""


class Measure(NamedTuple):
    """A column: a key of a row, and how it is shown."""

    key: str
    short: str
    unit: str
    scale: float
    """Shown is value × scale."""
    meaning: str


MEASURES = (
    Measure("ms", "ms", "per step", 1, "Time of one step, median"),
    Measure("tokens_per_s", "tokens/s", "", 1, "Tokens per second of one SAE in training"),
    Measure("entries", "|S|", "", 1, "Entries of the support per token"),
    Measure("flops", "GFLOP", "", 1e-9, "Multiplications and additions of one step, counted on paper"),
    Measure("bytes", "GB", "moved", 1e-9, "The least that one step reads and writes, counted on paper"),
    Measure("peak_bytes", "MB", "peak", 1e-6, "Memory of one step beyond parameters, moments and batch, measured"),
    Measure("hours_1e9", "hours", "to 1e9", 1, "Hours of training on 1e9 tokens at this rate"),
    Measure("hours_8e9", "hours", "to 8e9", 1, "Hours of training on 8e9 tokens at this rate"),
)
TOKENS = {"hours_1e9": 1e9, "hours_8e9": 8e9}


def stages_found(rows: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """The stages in which any row spent time, in order; unknown ones last, under their own names."""
    found = {key for row in rows for key, ms in row["stages"].items() if ms > 0}
    known = [{"key": key, **stage._asdict()} for key, stage in STAGES.items() if key in found]
    others = [
        {"key": key, "title": key, "short": key, "colour": OTHER_COLOURS[i % len(OTHER_COLOURS)]}
        for i, key in enumerate(sorted(found - STAGES.keys()))
    ]
    return known + others


def notes(dead: float, covered: bool) -> list[str]:
    """How the numbers came about. dead: the share of features that counts as dead; covered: whether memory was seen."""
    memory = (
        "Memory: how far the process's resident memory rose in one step above parameters, moments and batch, by the "
        "system's high-water mark; this library's scratch is counted."
        if covered
        else "Memory: not measured, this system keeps no resettable high-water mark."
    )
    return [
        "Dense recipe: the architecture's loss on dense tensors, autograd, removal of the decoder gradient's radial "
        "component, torch's fused Adam over all parameters, renormalisation; float32, with the library that is fastest "
        "here. Top-k by torch.topk. Approximate top-k: the largest of each group of features, then the k largest of "
        "those, with groups for a recall of 95 %.",
        "Time: medians over rounds in which the methods of an architecture take turns. A round is one undisturbed step "
        "(ms) and one with a clock around every operation of the dense forward pass, around autograd and around the "
        "optimizer, or around every call of a kernel; the stages come from the second, so their sum is not exactly the "
        "step.",
        "Stages of jumpahead: the encoder product is the matrix product inside its support search, the rest of which "
        "(screening and recomputing) is elementwise and selection; sums per feature are backward; what no kernel "
        "does is rule and bookkeeping.",
        "FLOPs and bytes: counted on paper from tokens, dimensions, features, |S| and touched rows; bytes are the "
        "least, every operand once per pass.",
        memory,
        "Data: unit-mean-square activations from a synthetic sparse dictionary; SAEs as at the start of training with "
        f"the short recipe, thresholds at the requested L0, {100 * dead:g} % of the features counted as dead where the "
        "architecture has a loss for them.",
    ]
