"""Estimates of the memory that training needs besides the SAEs' parameters, and of how many SAEs fit on a GPU."""

from __future__ import annotations

import os
import subprocess

from jumpahead.formatting import format_counted
from jumpahead.lm.model_shape import ModelShape
from jumpahead.lm.sites import parse_site
from jumpahead.metrics import MAX_REPLICATE_ELEMENTS
from jumpahead.planning.table import PanelPlan
from jumpahead.study.schema import Study

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
TRAINING_BYTES, CHECKPOINT_BYTES = 14, 12
"""Bytes per parameter of an SAE in training, in memory and in its checkpoint, with momentum."""
PROCESS_BYTES = 500_000_000
"""Memory of a process with torch, transformers and the compiled kernels, before any data."""
SUPPORT_ENTRIES = 200
"""Upper bound of the support's entries per token in common settings."""


def evaluation_bytes(panels: list[PanelPlan], clusters: int, replicates: int) -> int:
    """Return the bytes that the evaluation of the SAEs of one site needs, for the site that needs most.

    All SAEs of a site are evaluated together. Each needs W_enc, W_dec and a bfloat16 copy of W_enc, and the firing
    counts of every feature in every bootstrap cluster, int32; the bootstrap of one SAE at a time has them in float64,
    beside a part of its replicates. panels: of known d. clusters, replicates: of the bootstrap.
    """
    sites: dict[str, int] = {}
    for panel in panels:
        each = 10 * (panel.d or 0) * panel.width + 4 * clusters * panel.width
        sites[panel.site] = sites.get(panel.site, 0) + panel.saes * each
    widest = max((panel.width for panel in panels), default=0)
    bootstrap = 8 * clusters * widest + 2 * 8 * min(MAX_REPLICATE_ELEMENTS, replicates * widest)
    return max(sites.values(), default=0) + bootstrap


def detect_gpu() -> tuple[str, int] | None:
    """Return the name and the memory in bytes of the first NVIDIA GPU, from nvidia-smi; None without a GPU."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        name, mebibytes = output.splitlines()[0].rsplit(",", 1)
        return name.strip(), int(mebibytes) * 2**20
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def saes_that_fit(study: Study, workspace: int, panels: list[PanelPlan], gpu_bytes: int) -> str:
    """Return a clause that says how many SAEs train at once on a GPU, beside the LM and the activations."""
    if not panels:
        return "the number of SAEs that fit is unknown without the model's config"
    widest = max(panels, key=lambda panel: panel.parameters or 0)
    free = gpu_bytes - workspace - gpu_workspace(study.train.batch, widest.d or 0, widest.width)
    count = max(0, int(free // (TRAINING_BYTES * (widest.parameters or 1))))
    return f"{format_counted(count, 'SAE')} of {widest.width:,} features fit at once"


def gpu_workspace(batch: int, d: int, width: int) -> int:
    """Return the bytes that a training step needs on a GPU in addition to `step_workspace`, which counts for a CPU.

    They are the encoder product in bfloat16, up to the limit that TopK keeps (engine/kernels/triton), and a bit for
    each of its entries; partial sums of features with many entries (3 rows per 64 entries) and of ∂L/∂b_dec (a row per
    8 features); 160 bytes per entry of the support: sorts hold 64-bit indices, and buffers have twice the room.
    """
    entries, product = batch * SUPPORT_ENTRIES, batch * width
    product_bytes = 2 * min(2**29, product) + product // 8
    return product_bytes + 12 * d * entries // 64 + 4 * d * width // 8 + 160 * entries


def known_site_widths(study: Study, shape: ModelShape | None) -> list[int]:
    """Return the widths of the study's sites; without those that the model's config does not determine."""
    found = [shape.width_at(parse_site(site)) for site in study.activations.sites] if shape else []
    return [width for width in found if width is not None]


def workspace_bytes(study: Study, shape: ModelShape | None) -> int:
    """Return the bytes besides the SAEs: two blocks of activations, the engine's working memory, the LM."""
    context = study.lm.context or min(1024, shape.max_context if shape else 1024)
    rows = max(study.activations.block, study.lm.batch) * context
    block = rows * sum(known_site_widths(study, shape)) * DTYPE_BYTES[study.activations.dtype]
    logits = study.lm.batch * context * (shape.vocab_size if shape else 0) * 4
    return (
        2 * block
        + step_workspace(study.train.batch, max(known_site_widths(study, shape), default=0), max_threads(study))
        + 2 * logits
        + 2 * ((shape and shape.weights_bytes) or 0)
    )


def max_threads(study: Study) -> int:
    """Return the maximum number of CPU threads that training uses."""
    return study.train.threads or os.cpu_count() or 1


def step_workspace(batch: int, d: int, max_threads: int) -> int:
    """Return the bytes that training steps need besides the SAEs. At most one step per thread runs at a time.

    Per thread: a block of the encoder product (2²⁰ entries, at most float32), five [B, d] tensors (x − b_dec, its copy
    in bfloat16, x̂ − x for each reconstruction, their targets), and 40 bytes per entry of the support.
    """
    return max_threads * (4 * 2**20 + 20 * batch * d + 40 * batch * SUPPORT_ENTRIES)
