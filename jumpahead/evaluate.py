"""Measuring SAEs: what splicing them into the LM costs, and what their features do, on held-out text.

    clean     the LM as it is
    spliced   the site's activations x replaced by x̂ at every spliceable position (not position 0, not special tokens)
    zero      … by 0            mean      … by the mean activation of the training text

All SAEs of one site are measured together: the LM runs up to the site once per group of contexts, and per SAE only what
comes after it. Sums per document; `metrics.py` turns them into numbers. Documents are bundled where there are more than
`MOST_CLUSTERS`, which only makes intervals wider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead import log, metrics
from jumpahead.engine import Kernels, decode, encode, kernels
from jumpahead.errors import DataError
from jumpahead.lm.contexts import Contexts
from jumpahead.lm.model import LM
from jumpahead.sae.base import SAE

MOST_CLUSTERS = 256


class HeldOut(NamedTuple):
    """The text that is scored."""

    contexts: Contexts
    groups: int
    """The first groups, which hold the tokens asked for."""
    cluster: np.ndarray
    """int64 [documents]: the cluster of each document that occurs in these groups, −1 for the others."""

    @classmethod
    def of(cls, contexts: Contexts, tokens: int) -> HeldOut:
        """Whole groups until `tokens` tokens are scored, or all there are."""
        scored = np.cumsum(contexts.scored_per_group)
        groups = min(int(np.searchsorted(scored, tokens)) + 1, contexts.groups)
        seen = np.unique(np.concatenate([contexts.document(group) for group in range(groups)]))
        cluster = np.full(len(contexts.identities), -1, np.int64)
        cluster[seen] = np.arange(len(seen)) % MOST_CLUSTERS
        return cls(contexts, groups, cluster)

    @property
    def clusters(self) -> int:
        return int(self.cluster.max()) + 1

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return int(self.contexts.scored_per_group[: self.groups].sum())


class Measured(NamedTuple):
    """One SAE's sums over the held-out text."""

    sums: metrics.Sums
    documents: dict[str, np.ndarray]
    """[documents] each: `tokens`, `clean`, `spliced` (nats)."""


def evaluate(
    saes: Mapping[str, SAE],
    lm: LM,
    text: HeldOut,
    site: str,
    mean: Tensor,
    progress: log.Progress | None = None,
    layer: Kernels | None = None,
) -> dict[str, Measured]:
    """Sums of every SAE at `site`. mean [d]: the activation that mean ablation puts there, in the LM's unit."""
    for name, sae in saes.items():
        if sae.d != lm.width_at(site):
            raise DataError(f"{name} takes activations of width {sae.d}; {site} has {lm.width_at(site)}.")
    layer = layer or kernels()
    documents = len(text.cluster)
    found = {
        name: Measured(
            metrics.Sums.zeros(text.clusters, sae.d, sae.width),
            {key: np.zeros(documents) for key in ("tokens", "clean", "spliced")},
        )
        for name, sae in saes.items()
    }
    progress = progress or log.Silent()
    with progress.phase("evaluating", text.tokens * max(1, len(saes)), "tokens") as phase:
        for group in range(text.groups):
            scored = int(text.contexts.scored_per_group[group])
            view = _Group.of(lm, text, group, site, mean)
            for name, sae in saes.items():
                view.add(found[name], sae, layer)
                phase.advance(scored)
    return found


class _Group(NamedTuple):
    """One group of contexts, run up to the site, with everything the SAEs share."""

    lm: LM
    resume: Any
    spliced: Tensor
    """bool [b, t]"""
    scored: Tensor
    """bool [b, t]"""
    target: Tensor
    """int64 [scored]: the next token of every scored position."""
    x: Tensor
    """float32 [rows, d]: the site's activations at spliced positions."""
    row_cluster: Tensor
    """int64 [rows]"""
    token_cluster: Tensor
    """int64 [scored]"""
    token_document: Tensor
    """int64 [scored]"""
    p: Tensor
    """float32 [scored, V]: clean probabilities of the next token."""
    negentropy: Tensor
    """[scored]: Σ p·log p."""
    clean: Tensor
    """[scored]: nats of the clean LM."""
    ablated: dict[str, Tensor]
    """`zero`, `mean`: nats [scored]."""

    @classmethod
    def of(cls, lm: LM, text: HeldOut, group: int, site: str, mean: Tensor) -> _Group:
        ids = torch.from_numpy(text.contexts.ids(group))
        spliced = torch.from_numpy(text.contexts.trained(group))
        scored = torch.from_numpy(text.contexts.scored(group))
        document = torch.from_numpy(text.contexts.document(group).astype(np.int64))[:, None].expand_as(ids)
        cluster = torch.from_numpy(text.cluster)[document]
        resume = lm.resume_point(ids, site)
        view = cls(
            lm=lm,
            resume=resume,
            spliced=spliced,
            scored=scored,
            target=torch.roll(ids, -1, 1)[scored],
            x=resume.activation[spliced].float(),
            row_cluster=cluster[spliced],
            token_cluster=cluster[scored],
            token_document=document[scored],
            p=torch.empty(0),
            negentropy=torch.empty(0),
            clean=torch.empty(0),
            ablated={},
        )
        logits = view.logits(None)
        log_p = torch.log_softmax(logits, dim=-1)
        p = log_p.exp()
        zero, mean = torch.zeros_like(view.x), mean.expand_as(view.x)
        return view._replace(
            p=p,
            negentropy=torch.einsum("nv,nv->n", p, log_p),
            clean=view.nats(logits)[0],
            ablated={name: view.nats(view.logits(x))[0] for name, x in {"zero": zero, "mean": mean}.items()},
        )

    def logits(self, x_hat: Tensor | None) -> Tensor:
        """float32 [scored, V] with x_hat [rows, d] at the spliced positions, or of the clean LM."""
        activation = None
        if x_hat is not None:
            activation = self.resume.activation.clone()
            activation[self.spliced] = x_hat.to(activation.dtype)
        return self.lm.finish(self.resume, activation)[self.scored].float()

    def nats(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each scored token, and the logarithm of the softmax's denominator; [scored] each."""
        total = torch.logsumexp(logits, dim=-1)
        return total - logits.gather(1, self.target[:, None])[:, 0], total

    def divergence(self, logits: Tensor, total: Tensor) -> Tensor:
        """KL(clean ‖ these) of each scored token, [scored]: Σ p·log p − Σ p·(logits − total)."""
        return self.negentropy - torch.einsum("nv,nv->n", self.p, logits) + total

    def add(self, found: Measured, sae: SAE, layer: Kernels) -> None:
        """Add this group to the sums of one SAE."""
        sums, x = found.sums, self.x
        features = encode(sae, x, layer)
        x_hat = decode(sae, features)
        logits = self.logits(x_hat)
        clean, (spliced, total) = self.clean, self.nats(logits)
        kl = self.divergence(logits, total)

        def per_cluster(into: np.ndarray, cluster: Tensor, values: Tensor) -> None:
            np.add.at(into, cluster.numpy(), values.double().numpy().astype(into.dtype))

        one = torch.ones(len(self.token_cluster))
        for into, values in [
            (sums.tokens, one), (sums.clean, clean), (sums.spliced, spliced), (sums.kl, kl),
            (sums.zero, self.ablated["zero"]), (sums.mean, self.ablated["mean"]),
        ]:  # fmt: skip
            per_cluster(into, self.token_cluster, values)
        for key, values in {"tokens": one, "clean": clean, "spliced": spliced}.items():
            per_cluster(found.documents[key], self.token_document, values)
        exact, guess = x.double(), x_hat.double()
        dot = (exact * guess).sum(1)
        squares = exact.square().sum(1), guess.square().sum(1)
        cosine = dot / (squares[0] * squares[1]).sqrt().clamp_min(1e-30)
        counts = features.indptr.diff()
        for into, values in [
            (sums.rows, torch.ones(len(x))), (sums.l0, counts), (sums.error, (exact - guess).square().sum(1)),
            (sums.x_sq, squares[0]), (sums.x_sum, exact), (sums.xhat_sq, squares[1]), (sums.x_dot_xhat, dot),
            (sums.cosine, cosine),
        ]:  # fmt: skip
            per_cluster(into, self.row_cluster, values)
        key = self.row_cluster.repeat_interleave(counts) * sae.width + features.feature
        where, times = torch.unique(key, return_counts=True)
        sums.firing.reshape(-1)[where.numpy()] += times.numpy()


def document_evaluation(
    measured: Measured, text: HeldOut, weights: np.ndarray, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """The measured part of evaluation.json. weights [R, clusters]: bootstrap replicates, shared by a study's SAEs."""
    sums, documents = measured.sums, measured.documents
    seen = np.flatnonzero(text.cluster >= 0)
    found = metrics.measure(sums)
    error = metrics.standard_error((documents["spliced"] - documents["clean"])[seen], documents["tokens"][seen])
    errors = metrics.standard_errors(sums) | {"delta_lm_loss": error}
    delta = found["delta_lm_loss"]
    said = list(notes)
    if not error <= 0.05 * abs(delta):
        said.append(
            f"The standard error of delta LM loss is {error:.2g} nats, more than 5 % of it: "
            "raise evaluate.tokens, or hold out more text, for a sharper number."
        )
    return {
        "schema": "jumpahead.evaluation/1",
        "metrics": found,
        "standard_errors": errors,
        "bootstrap": {key: values.tolist() for key, values in metrics.bootstrap(sums, weights).items()},
        "documents": {
            "identity": [text.contexts.names[i] for i in seen],
            **{key: documents[key][seen].tolist() for key in ("tokens", "clean", "spliced")},
        },
        "histogram": metrics.frequency_histogram(sums.firing.sum(0), int(sums.rows.sum())),
        "text": {
            "tokens": text.tokens,
            "documents": len(seen),
            "clusters": text.clusters,
            "digest": text.contexts.digest,
        },
        "notes": said,
    }
