"""The one evaluator of all libraries' SAEs: dense, in plain torch, from exported weights.

    π = W_enc·(x − b_pre) + b_enc        f = activate(π)        x̂ = W_dec·f + b_dec

Products are float32, sums float64. Held-out text: x̂ replaces x at every spliceable position of the language model, and
the next-token loss is compared with the unmodified model's. The formulas are the declared ones (jumpahead/metrics.py);
no encoder, kernel or sum of jumpahead is used.

n rows · d dimensions · M features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead import metrics
from jumpahead.engine import SparseFeatures
from jumpahead.evaluation.held_out import HeldOut, HeldOutRows
from jumpahead.evaluation.truth import match_features
from jumpahead.lm.model import LM, ResumePoint
from jumpahead.metric_sums import Sums
from jumpahead.resampling import ratio_standard_error

EVALUATOR_VERSION = 1
"""Raised if the numbers of the same SAE may change; part of the key of every result."""
ROWS_AT_ONCE = 4096
"""Rows encoded together: bounds memory at ROWS × M."""


class ExportedSAE(NamedTuple):
    """The weights of a trained SAE, float32, for the language model's own activations."""

    w_enc: Tensor
    """[M, d]."""
    b_pre: Tensor
    """[d]: subtracted before the encoder."""
    b_enc: Tensor
    """[M]."""
    w_dec: Tensor
    """[M, d]."""
    b_dec: Tensor
    """[d]."""
    activate: Callable[[Tensor], Tensor]
    """Features [n, M] from pre-activations [n, M]."""

    def encode(self, x: Tensor) -> Tensor:
        """Return the features [n, M] of activations x [n, d]."""
        return self.activate((x - self.b_pre) @ self.w_enc.T + self.b_enc)

    def decode(self, features: Tensor) -> Tensor:
        """Return the reconstructions [n, d] of features [n, M]."""
        return features @ self.w_dec + self.b_dec

    def __call__(self, x: Tensor) -> Tensor:
        """Return the reconstructions [n, d] of activations x [n, d]."""
        return self.decode(self.encode(x))


def threshold_activation(threshold: Tensor) -> Callable[[Tensor], Tensor]:
    """Return ReLU(π) where π > threshold [M], else 0."""
    return lambda pre: pre.relu() * (pre > threshold)


def topk_activation(k: int) -> Callable[[Tensor], Tensor]:
    """Return the k largest ReLU(π) of each row."""

    def activate(pre: Tensor) -> Tensor:
        top = pre.relu().topk(k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, top.indices, top.values)

    return activate


def gated_activation(b_gate: Tensor, scale: Tensor, b_mag: Tensor) -> Callable[[Tensor], Tensor]:
    """Return ReLU(π·scale + b_mag) where π + b_gate > 0, else 0; all [M]."""
    return lambda pre: (pre * scale + b_mag).relu() * (pre + b_gate > 0)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖ / ‖expected‖, over all elements, in float64."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# ---------------------------------------------------------------------------------------------- held-out text


class CleanGroup(NamedTuple):
    """One group of held-out contexts [b, t] and the unmodified model's loss there."""

    resume: ResumePoint
    spliced: Tensor
    """bool [b, t]: positions whose activation is replaced."""
    scored: Tensor
    """bool [b, t]: positions whose next-token loss counts."""
    target: Tensor
    """int64 [scored]: the next tokens."""
    nats: Tensor
    """float64 [scored]: the loss of the unmodified model."""
    row_document: np.ndarray
    """int64 [spliced]: the document of each row."""
    scored_document: np.ndarray
    """int64 [scored]: the document of each scored position."""


def clean_groups(lm: LM, text: HeldOut, site: str) -> list[CleanGroup]:
    """Run the unmodified model on the held-out text; return its groups."""
    return [_clean_group(lm, text, group, site) for group in range(text.groups)]


def _clean_group(lm: LM, text: HeldOut, group: int, site: str) -> CleanGroup:
    """Run the unmodified model on one group of contexts."""
    contexts = text.contexts
    ids, spliced, scored = (
        torch.from_numpy(array)
        for array in (contexts.ids(group), contexts.trained_mask(group), contexts.scored_mask(group))
    )
    document = contexts.chunk_documents(group)[contexts.chunk_index(group)]
    resume = lm.run_to_site(ids, site, contexts.position_ids(group))
    target = torch.roll(ids, -1, 1)[scored]
    nats = next_token_nats(lm.run_from_site(resume, None, scored), target)
    return CleanGroup(resume, spliced, scored, target, nats, document[spliced.numpy()], document[scored.numpy()])


def next_token_nats(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of each target [n] in nats, float64 [n]. logits: [n, V]."""
    return torch.nn.functional.cross_entropy(logits.float(), target, reduction="none").double()


@torch.no_grad()
def evaluate_on_text(sae: ExportedSAE, lm: LM, groups: Sequence[CleanGroup]) -> dict[str, float]:
    """Return delta LM loss, its standard error over documents, FVU, L0 and the number of features that never fire."""
    documents = 1 + max(int(group.row_document.max()) for group in groups)
    sums = Sums.zeros(documents, sae.w_dec.shape[1], len(sae.w_dec))
    for group in groups:
        x = group.resume.activation[group.spliced].float()
        x_hat = _add_rows(sums, sae, x, group.row_document)
        activation = group.resume.activation.clone()
        activation[group.spliced] = x_hat.to(activation)
        nats = next_token_nats(lm.run_from_site(group.resume, activation, group.scored), group.target)
        for name, values in (("clean", group.nats), ("spliced", nats), ("tokens", torch.ones_like(group.nats))):
            _add(sums, name, group.scored_document, values)
    seen = sums.tokens > 0
    error = ratio_standard_error((sums.spliced - sums.clean)[seen], sums.tokens[seen])
    return {**_measure(sums, ("delta_lm_loss", "fvu", "l0")), "se": error, "measured_on": int(sums.rows.sum())}


# ---------------------------------------------------------------------------------------------- held-out rows


@torch.no_grad()
def evaluate_on_rows(sae: ExportedSAE, held_out: HeldOutRows, site: str) -> dict[str, float]:
    """Return FVU, L0, the number of features that never fire and F1 of the true features, on synthetic activations."""
    data, match = held_out.activations, match_features(held_out.activations.dictionary[site], sae.w_dec)
    sums = Sums.zeros(held_out.groups, sae.w_dec.shape[1], len(sae.w_dec), match.true_features)
    for group in range(held_out.groups):
        x, truth = data.rows(group)[site].float(), data.feature_activations(group)[site] > 0
        document = np.full(len(x), group)
        _add_rows(sums, sae, x, document)
        _add(sums, "tokens", document, torch.ones(len(x)))
        found = match.firing_counts(_sparse(sae.encode(x)), truth, torch.zeros(len(x), dtype=torch.int64), 1)
        for name, counts in found.items():
            getattr(sums, name)[group] += counts[0]
    return {**_measure(sums, ("fvu", "l0", "f1")), "measured_on": int(sums.rows.sum())}


# ---------------------------------------------------------------------------------------------- sums


def _sparse(features: Tensor) -> SparseFeatures:
    """Return dense features [n, M] in compressed sparse rows."""
    on = features > 0
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), on.sum(1).cumsum(0)])
    return SparseFeatures(indptr, on.nonzero()[:, 1].int(), features[on])


def _add_rows(sums: Sums, sae: ExportedSAE, x: Tensor, document: np.ndarray) -> Tensor:
    """Add the terms of the rows x [n, d] to the sums of their documents [n]; return the reconstructions [n, d]."""
    parts = []
    for start in range(0, len(x), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        features = sae.encode(x[rows])
        parts.append(sae.decode(features))
        exact, on = x[rows].double(), features > 0
        terms = {"rows": torch.ones(len(exact)), "l0": on.sum(1), "x_sq": exact.square().sum(1), "x_sum": exact}
        terms["error"] = (exact - parts[-1].double()).square().sum(1)
        for name, values in terms.items():
            _add(sums, name, document[rows], values)
        for one in np.unique(document[rows]):
            sums.firing[one] += on[torch.from_numpy(document[rows] == one)].sum(0).numpy()
    return torch.cat(parts)


def _add(sums: Sums, name: str, document: np.ndarray, values: Tensor) -> None:
    """Add values [n, …] to one field of the sums of their documents [n]."""
    field = getattr(sums, name)
    np.add.at(field, document, values.numpy().astype(field.dtype))


def _measure(sums: Sums, keys: Sequence[str]) -> dict[str, float]:
    """Return the metrics with these keys, and as `dead` the number of features that never fired."""
    found = metrics.measure(sums, keys=[*keys, "never_fired"])
    return {**{key: found[key] for key in keys}, "dead": found["never_fired"]}
