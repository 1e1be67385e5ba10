"""One streaming pass over held-out text: what each feature of several SAEs of a site responds to.

Kept per feature: the number of tokens it fires on, the sum and a histogram of its activations, the strongest activation
of the contexts where it is strongest, and a uniform random sample of its activations. Each example has the activations
around it. Memory depends on the number of features, not on the text.

The result does not depend on how contexts are divided into groups. The pass is saved about twice a minute; if it is
interrupted, it continues there and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine import Kernels, SparseEncoder, SparseFeatures, kernel_layer
from jumpahead.engine.kernels.numba.threads import parallel_for
from jumpahead.errors import ArtefactError, DataError
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.features.collect_loops import BINS, WINDOW, add_sample, add_statistics, add_top
from jumpahead.lm.model import LM
from jumpahead.lm.sae_location import warn_if_elsewhere
from jumpahead.lm.sites import parse_site
from jumpahead.progress import Progress, SilentProgress
from jumpahead.sae.saved import SAE
from jumpahead.storage.save_schedule import SaveSchedule
from jumpahead.storage.tensors import read_arrays, read_tensors_info, write_tensors
from jumpahead.text.contexts import Contexts

TOP, SAMPLE = 12, 24
"""Number of strongest examples and of random examples that are kept of each feature."""
POOL = 2048
"""Number of tokens, evenly spaced in the text, at which it is kept which features fire."""
SAVE_MINUTES = 2.0
"""Largest number of minutes between two saves."""


class Examples(NamedTuple):
    """Examples of every feature, s slots each; empty slots have the value 0."""

    value: np.ndarray
    """float32 [M, s]: the activation."""
    chunk: np.ndarray
    """int32 [M, s]: the text chunk, as an index into `Contexts.chunk_start`."""
    offset: np.ndarray
    """int32 [M, s]: the token within the chunk, counted without BOS."""
    window: np.ndarray
    """float32 [M, s, WINDOW]: the feature's activations from `BEFORE` tokens before to `AFTER` tokens after it."""

    @classmethod
    def empty(cls, width: int, slots: int) -> Examples:
        """Return empty slots of `width` features."""
        value, window = np.zeros((width, slots), np.float32), np.zeros((width, slots, WINDOW), np.float32)
        return cls(value, np.zeros((width, slots), np.int32), np.zeros((width, slots), np.int32), window)


@final
class FeatureActivity:
    """Counts, histograms and examples of the features of one SAE, of the text so far."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.count = np.zeros(width, np.int64)
        """[M]: number of tokens on which each feature fires."""
        self.total = np.zeros(width)
        """float64 [M]: sum of its activations."""
        self.histogram = np.zeros((width, BINS), np.int64)
        """[M, BINS]: numbers of activations in equal bins from 0 to 2^exponent."""
        self.exponent = np.full(width, np.iinfo(np.int16).min, np.int16)
        """[M]: the exponent of the histogram's upper end; the smallest int16 for a feature that never fired."""
        self.top = Examples.empty(width, TOP)
        """The strongest activation of the text chunks where it is largest, sorted."""
        self.sample = Examples.empty(width, SAMPLE)
        """A uniform random sample of the activations."""
        self.priority = np.full((width, SAMPLE), np.iinfo(np.uint64).max, np.uint64)
        """[M, SAMPLE]: the pseudo-random numbers that the sample is chosen and sorted by."""
        self.pool_index, self.pool_feature = np.zeros(0, np.int32), np.zeros(0, np.int32)
        """[entries] each: the token of the pool, and a feature that fires there."""

    def add(self, features: SparseFeatures, chunk: np.ndarray, offset: np.ndarray, pool: np.ndarray) -> None:
        """Add the features of n rows of whole text chunks, in the order of the text.

        chunk, offset: int32 [n], as in `Examples`. pool: int32 [n], the row's index in the pool of tokens; −1 for none.
        """
        indptr, feature = features.indptr.cpu().numpy(), features.feature.cpu().numpy()
        row = np.repeat(np.arange(len(chunk), dtype=np.int32), np.diff(indptr))
        in_pool = pool[row] >= 0
        self.pool_index = np.concatenate([self.pool_index, pool[row[in_pool]]])
        self.pool_feature = np.concatenate([self.pool_feature, feature[in_pool].astype(np.int32)])
        order = np.argsort(feature, kind="stable")
        row, value = row[order], features.value.float().cpu().numpy()[order]
        colptr = np.concatenate([[0], np.cumsum(np.bincount(feature, minlength=self.width))])
        statistics = (self.count, self.total, self.histogram, self.exponent)
        parallel_for(add_statistics, self.width, colptr, value, *statistics)
        entries = (colptr, row, value, chunk, offset)
        parallel_for(add_top, self.width, *entries, *self.top)
        parallel_for(add_sample, self.width, *entries, self.priority, *self.sample)

    @property
    def nbytes(self) -> int:
        """Return the memory of all arrays in bytes."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name."""
        single = ("count", "total", "histogram", "exponent", "priority", "pool_index", "pool_feature")
        groups = {"top": self.top, "sample": self.sample}
        return {name: getattr(self, name) for name in single} | {
            f"{group}.{name}": array for group, examples in groups.items() for name, array in examples._asdict().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FeatureActivity:
        """Return the activity with the arrays that `arrays` returned."""
        activity = cls(0)
        activity.width = len(arrays["count"])
        for name in ("count", "total", "histogram", "exponent", "priority", "pool_index", "pool_feature"):
            setattr(activity, name, arrays[name])
        for group in ("top", "sample"):
            setattr(activity, group, Examples(*(arrays[f"{group}.{name}"] for name in Examples._fields)))
        return activity


class Collected(NamedTuple):
    """The result of a pass over the text at one site."""

    activity: dict[str, FeatureActivity]
    """By name of SAE."""
    rows: int
    """Number of tokens that were encoded."""
    token_counts: np.ndarray
    """int64 [V]: how often each token id was encoded."""
    pool_chunk: np.ndarray
    """int32 [pool]: the text chunk of each token of the pool."""
    pool_offset: np.ndarray
    """int32 [pool]: its place in the chunk, as in `Examples`."""


def collect(
    saes: Mapping[str, SAE],
    lm: LM,
    text: HeldOut,
    site: str,
    *,
    progress: Progress | None = None,
    layer: Kernels | None = None,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    inputs: str = "",
) -> Collected:
    """Run the LM once over the text and return what the features of all SAEs respond to.

    device: where SAEs encode. layer: the kernel layer, by default the device's. checkpoint: the file in which the pass
    is saved and from which it continues. inputs: the digest of everything that the result depends on; a checkpoint of
    another digest is ignored. Raises DataError if an SAE's d is not the site's.
    """
    for name, sae in saes.items():
        if sae.d != lm.width_at(site):
            raise DataError(f"{name} takes activations of width {sae.d}; {site} has {lm.width_at(site)}.")
        warn_if_elsewhere(sae, lm.name, lm.digest, parse_site(site))
    contexts, progress = text.contexts, progress or SilentProgress()
    rows_per_group = contexts.rows_per_group[: text.groups]
    collected, done = _resume(checkpoint, inputs, saes) or (_empty(saes, int(rows_per_group.sum()), lm.vocab_size), 0)
    layer = layer or kernel_layer(device=torch.device(device), is_async=False)
    encoders = {name: SparseEncoder(sae, layer, device) for name, sae in saes.items()}
    before = np.concatenate([[0], np.cumsum(rows_per_group)])
    schedule = SaveSchedule(SAVE_MINUTES)
    with progress.phase("reading features", int(before[-1]), "tokens", done=int(before[done])) as phase:
        for group in range(done, text.groups):
            _add_group(collected, encoders, lm, contexts, group, site, int(before[group]))
            phase.advance(int(rows_per_group[group]))
            if checkpoint is not None and group + 1 < text.groups and schedule.is_due:
                started = schedule.clock()
                _save(checkpoint, inputs, collected, group + 1)
                schedule.record(started)
    return collected


def _empty(saes: Mapping[str, SAE], rows: int, vocab_size: int) -> Collected:
    """Return what is collected before the first group."""
    pool = min(POOL, rows)
    activity = {name: FeatureActivity(sae.width) for name, sae in saes.items()}
    counts = np.zeros(vocab_size, np.int64)
    return Collected(activity, rows, counts, np.zeros(pool, np.int32), np.zeros(pool, np.int32))


def _add_group(
    collected: Collected,
    encoders: Mapping[str, SparseEncoder],
    lm: LM,
    contexts: Contexts,
    group: int,
    site: str,
    first_row: int,
) -> None:
    """Add a group of contexts to what is collected. first_row: the number of rows before the group."""
    ids, mask = contexts.ids(group), contexts.trained_mask(group)
    chunk, offset = token_places(contexts, group)
    pool = _pool_index(first_row, len(chunk), collected.rows, len(collected.pool_chunk))
    no_padding = np.ones(ids.shape, dtype=bool)  # on the left; on the right it changes nothing
    x = lm.read(ids, [site], contexts.position_ids(group), no_padding)[site]
    x = x[torch.from_numpy(mask).to(x.device)].float()
    features = {name: encoder.encode(_on(encoder, x)) for name, encoder in encoders.items()}
    collected.token_counts[:] += np.bincount(ids[mask], minlength=len(collected.token_counts))
    in_pool = pool >= 0
    collected.pool_chunk[pool[in_pool]], collected.pool_offset[pool[in_pool]] = chunk[in_pool], offset[in_pool]
    for name, found in features.items():
        collected.activity[name].add(found, chunk, offset, pool)


def _on(encoder: SparseEncoder, x: Tensor) -> Tensor:
    """Return activations on the device of an encoder."""
    return x.to(encoder.sae.device)


def token_places(contexts: Contexts, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the text chunk and the offset in it, without BOS, of each trained position of a group: int32 [rows] each.

    The chunk is an index into `Contexts.chunk_start`; the token is contexts.tokens[chunk_start[chunk] + offset].
    """
    index, mask = contexts.chunk_index(group), contexts.trained_mask(group)
    starts = np.diff(index, axis=1, prepend=-2) != 0
    column = np.broadcast_to(np.arange(index.shape[1]), index.shape)
    local = column - np.maximum.accumulate(np.where(starts, column, 0), axis=1)
    first = contexts.context_slice(group).start
    if contexts.chunks_per_context is not None:
        first = int(contexts.chunks_per_context[:first].sum())
    offset = local - int(contexts.bos_id is not None)
    return (first + index[mask]).astype(np.int32), offset[mask].astype(np.int32)


def _pool_index(first_row: int, rows: int, total: int, pool: int) -> np.ndarray:
    """Return the index in the pool of rows first_row …, int32 [rows]; −1 for rows that are not in the pool.

    Member p of the pool is row (2·p + 1)·total / (2·pool) of all `total` rows, rounded down.
    """
    members = (2 * np.arange(pool, dtype=np.int64) + 1) * total // (2 * max(1, pool))
    low, high = np.searchsorted(members, [first_row, first_row + rows])
    index = np.full(rows, -1, np.int32)
    index[members[low:high] - first_row] = np.arange(low, high)
    return index


# ------------------------------------------------------------------------------------------ saving


def _save(path: Path, inputs: str, collected: Collected, groups: int) -> None:
    """Write what is collected after `groups` groups."""
    shared = {name: getattr(collected, name) for name in ("token_counts", "pool_chunk", "pool_offset")}
    arrays = {f"/{name}": array for name, array in shared.items()}
    for number, activity in enumerate(collected.activity.values()):
        arrays |= {f"{number}/{name}": array for name, array in activity.arrays().items()}
    write_tensors(path, arrays, {"inputs": inputs, "groups": groups, "rows": collected.rows})


def _resume(path: Path | None, inputs: str, saes: Mapping[str, SAE]) -> tuple[Collected, int] | None:
    """Return a saved pass and its number of groups; None if there is none with these inputs, or if it is damaged."""
    if path is None or not path.exists():
        return None
    try:
        info: dict[str, Any] = read_tensors_info(path)
        if info.get("inputs") != inputs:
            return None
        arrays = read_arrays(path)
    except ArtefactError:
        return None
    by_sae: dict[str, FeatureActivity] = {}
    for number, name in enumerate(saes):
        prefix = f"{number}/"
        own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        by_sae[name] = FeatureActivity.from_arrays(own)
    shared = (arrays[f"/{name}"] for name in ("token_counts", "pool_chunk", "pool_offset"))
    return Collected(by_sae, info["rows"], *shared), info["groups"]
