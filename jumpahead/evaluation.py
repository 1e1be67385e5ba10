"""Measuring SAEs: what splicing them into the LM costs, and what their features do, on held-out text.

    clean     the LM as it is
    spliced   the site's activations x replaced by x̂ at every spliceable position (not position 0, not special tokens)
    zero      … by 0            mean      … by the mean activation of the training text

All SAEs of one site are measured together: the LM runs up to the site once per group of contexts, and per SAE only what
comes after it. On a GPU, SAEs encode and decode there too, as many at once as its memory holds; sums are made on the
CPU, in an order of their own. Where there is no LM (`reconstruct`), what it would say is nan; L0, FVU and frequencies
are measured. Sums per document; `metrics.py` turns them into numbers. Documents are bundled where there are more than
`MOST_CLUSTERS`, which only makes intervals wider.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead import metrics
from jumpahead.activations.base import Activations
from jumpahead.engine import Coder, Features, Kernels, kernel_layer
from jumpahead.errors import DataError
from jumpahead.lm.model import LM, Resume
from jumpahead.progress import Phase, Progress, Silent
from jumpahead.sae.base import SAE
from jumpahead.text.contexts import Contexts

MOST_CLUSTERS = 256
LOGITS_AT_ONCE = 2**19
"""2 MiB in float32."""
SHARE_OF_CARD = 0.7
"""Of a GPU's free memory less what logits take, for SAEs: the rest is for what encoding takes."""
LOGIT_BYTES = 16
"""Per scored token and entry of the vocabulary: clean and spliced logits, and what is made of them."""


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

    @property
    def names(self) -> tuple[str, ...]:
        """Of the documents."""
        return self.contexts.names

    @property
    def digest(self) -> str:
        return self.contexts.digest


class HeldOutRows(NamedTuple):
    """Activations that no SAE was trained on, to be measured without a language model."""

    activations: Activations
    groups: int
    """The first groups, which hold the rows asked for."""
    cluster: np.ndarray
    """int64 [documents]: the cluster of each document."""
    names: tuple[str, ...]
    """Of the documents."""
    digest: str
    tokens: int
    """What the panel says was measured on."""

    @classmethod
    def of(cls, activations: Activations, tokens: int) -> HeldOutRows:
        """Whole groups until there are `tokens` rows, or all there are; a group is a document."""
        rows = np.cumsum(activations.rows_per_group)
        groups = min(int(np.searchsorted(rows, tokens)) + 1, len(rows))
        names, cluster = tuple(f"group {group}" for group in range(groups)), np.arange(groups) % MOST_CLUSTERS
        return cls(activations, groups, cluster, names, activations.digest, int(rows[groups - 1]))

    @classmethod
    def of_text(cls, activations: Activations, text: HeldOut) -> HeldOutRows:
        """The activations of a text, so that results stand beside those that were measured with the LM."""
        return cls(activations, text.groups, text.cluster, text.names, text.digest, text.tokens)

    @property
    def clusters(self) -> int:
        return int(self.cluster.max()) + 1


class Measured(NamedTuple):
    """One SAE's sums over the held-out text."""

    sums: metrics.Sums
    documents: dict[str, np.ndarray]
    """[documents] each: `tokens`, `clean`, `spliced` (nats)."""

    @classmethod
    def nothing(cls, sae: SAE, text: HeldOut | HeldOutRows) -> Measured:
        """Before anything is added."""
        documents = {key: np.zeros(len(text.cluster)) for key in ("tokens", "clean", "spliced")}
        return cls(metrics.Sums.zeros(text.clusters, sae.d, sae.width), documents)


def evaluate(
    saes: Mapping[str, SAE],
    lm: LM,
    text: HeldOut,
    site: str,
    mean: Tensor,
    progress: Progress | None = None,
    layer: Kernels | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Measured]:
    """Sums of every SAE at `site`. mean [d]: the activation that mean ablation puts there, in the LM's unit.

    device: where SAEs encode and decode; layer: the kernels to do it with, by default the device's own.
    """
    for name, sae in saes.items():
        if sae.d != lm.width_at(site):
            raise DataError(f"{name} takes activations of width {sae.d}; {site} has {lm.width_at(site)}.")
    found = {name: Measured.nothing(sae, text) for name, sae in saes.items()}
    logits = LOGIT_BYTES * lm.vocabulary * int(text.contexts.scored_per_group[: text.groups].max())
    coders = ready_in_parts(saes, device, layer, logits)
    part = next(coders, {})
    progress = progress or Silent()
    with progress.phase("evaluating", text.tokens * max(1, len(saes)), "tokens") as phase:
        while part:
            for group in range(text.groups):
                _add_group(_Group.of(lm, text, group, site, mean, device), found, part, phase)
            part = next(coders, {})
    return found


def _add_group(view: _Group, found: Mapping[str, Measured], coders: Mapping[str, Coder], phase: Phase) -> None:
    """Add a group to the sums of these SAEs; nothing of either is held afterwards."""
    for name, coder in coders.items():
        view.add(found[name], coder)
        phase.advance(len(view.target))


def ready_in_parts(
    saes: Mapping[str, SAE], device: torch.device | str, layer: Kernels | None, beside: int
) -> Iterator[dict[str, Coder]]:
    """The SAEs, ready on the device: on a GPU in parts, each as large as its memory allows, and empty once the
    next is asked for: both would not fit. beside: bytes that are needed for other things."""
    device, names = torch.device(device), list(saes)
    layer = layer or kernel_layer(device=device, late=False)
    while names:
        room = float("inf")
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            room = SHARE_OF_CARD * (free + unused - beside)
        some = [names.pop(0)]
        while names and room >= sum(coder_bytes(saes[name]) for name in [*some, names[0]]):
            some.append(names.pop(0))
        part = {name: Coder(saes[name], layer, device) for name in some}
        yield part
        part.clear()


def coder_bytes(sae: SAE) -> int:
    """What an SAE takes while it encodes and decodes: float32 parameters, and W_enc in bfloat16."""
    return 10 * sae.width * sae.d


def reconstruct(
    saes: Mapping[str, SAE],
    text: HeldOutRows,
    site: str,
    progress: Progress | None = None,
    layer: Kernels | None = None,
    unit: str = "tokens",
    device: torch.device | str = "cpu",
) -> dict[str, Measured]:
    """Sums of every SAE at `site` without a language model: what is in nats is nan, a row counts as a token.

    unit: what progress calls the rows. device, layer: as in `evaluate`.
    """
    width = text.activations.widths[site]
    for name, sae in saes.items():
        if sae.d != width:
            raise DataError(f"{name} takes activations of width {sae.d}; {site} has {width}.")
    found = {name: Measured.nothing(sae, text) for name, sae in saes.items()}
    rows, progress = int(text.activations.rows_per_group[: text.groups].sum()), progress or Silent()
    coders = ready_in_parts(saes, device, layer, 0)
    part = next(coders, {})
    with progress.phase("evaluating", rows * max(1, len(saes)), unit) as phase:
        while part:
            for group in range(text.groups):
                x = text.activations.rows(group)[site].float().to(device)
                document, place = np.unique(text.activations.documents(group), return_inverse=True)
                for name in part:
                    _add_rows(found[name], part[name], x, document, torch.from_numpy(place), text.cluster[document])
                    phase.advance(len(x))
            part = next(coders, {})
    for measured in found.values():
        for key in ("clean", "spliced", "zero", "mean", "kl"):
            getattr(measured.sums, key).fill(np.nan)
        for key in ("clean", "spliced"):
            measured.documents[key].fill(np.nan)
    return found


def _add_rows(
    found: Measured, coder: Coder, x: Tensor, document: np.ndarray, place: Tensor, cluster: np.ndarray
) -> None:
    """Add the rows x [n, d] to the sums of one SAE; place [n]: which of `document` each row is a part of."""
    features = coder.encode(x)
    exact, count = x.double(), len(document)
    of_row = _reconstruction(exact, coder.decode(features), features)
    of_row |= {"x_sq": exact.square().sum(1), "x_sum": exact, "rows": torch.ones(len(x), dtype=torch.int64)}
    sums = {
        name: torch.zeros(count, *value.shape[1:], dtype=value.dtype).index_add_(0, place, value.cpu()).numpy()
        for name, value in of_row.items()
    }
    sums["firing"] = firing(features, place, count, coder.sae.width)
    sums["tokens"] = sums["rows"]
    for name, value in sums.items():
        np.add.at(getattr(found.sums, name), cluster, value)
    np.add.at(found.documents["tokens"], document, sums["tokens"])


def _reconstruction(exact: Tensor, x_hat: Tensor, features: Features) -> dict[str, Tensor]:
    """[n] each: what is summed over rows of x [n, d] (float64), its reconstruction and its features alone."""
    guess = x_hat.double()
    dot, square = (exact * guess).sum(1), guess.square().sum(1)
    return {
        "l0": features.indptr.diff(), "error": (exact - guess).square().sum(1), "xhat_sq": square, "x_dot_xhat": dot,
        "cosine": dot / (exact.square().sum(1) * square).sqrt().clamp_min(1e-30),
    }  # fmt: skip


class _Group(NamedTuple):
    """One group of contexts, run up to the site, with everything the SAEs share."""

    lm: LM
    resume: Resume
    spliced: Tensor
    """bool [b, t]"""
    scored: Tensor
    """bool [b, t]"""
    target: Tensor
    """int64 [scored]: the next token of every scored position."""
    x: Tensor
    """float32 [rows, d]: the site's activations at spliced positions, where the SAEs are."""
    exact: Tensor
    """float64 [rows, d]: x again."""
    p: Tensor
    """float32 [scored, V]: clean probabilities of the next token."""
    negentropy: Tensor
    """[scored]: Σ p·log p."""
    chunk: Tensor
    """int64 [b, t]: which chunk each position belongs to; −1 for padding."""
    cluster: np.ndarray
    """int64 [chunks]: the cluster of each chunk of a document."""
    document: np.ndarray
    """int64 [chunks]"""
    shared: dict[str, np.ndarray]
    """[chunks, …]: the fields of `Sums` that are the same for every SAE, chunk by chunk."""

    @classmethod
    def of(
        cls, lm: LM, text: HeldOut, group: int, site: str, mean: Tensor, device: torch.device | str = "cpu"
    ) -> _Group:
        ids = torch.from_numpy(text.contexts.ids(group))
        spliced = torch.from_numpy(text.contexts.trained(group))
        scored = torch.from_numpy(text.contexts.scored(group))
        chunk, document = torch.from_numpy(text.contexts.chunk(group)), text.contexts.document(group).astype(np.int64)
        resume = lm.resume_point(ids, site, text.contexts.positions(group))
        target, x = torch.roll(ids, -1, 1)[scored], resume.activation[spliced].float().to(device)
        clean = spliced_logits(lm, resume, spliced, scored, None)
        p = torch.softmax(clean.float(), dim=-1)
        nats, negentropy = scores(clean, target, p)
        del clean
        zero, middle = (
            scores(spliced_logits(lm, resume, spliced, scored, value), target)[0]
            for value in (torch.zeros_like(x), mean.to(x).expand_as(x))
        )
        exact = x.double()
        tokens, rows = (per_chunk_count(chunk, where, len(document)) for where in (scored, spliced))
        shared = {
            "tokens": tokens,
            "rows": rows,
            **{name: per_chunk(v, tokens) for name, v in {"clean": nats, "zero": zero, "mean": middle}.items()},
            **{name: per_chunk(v, rows) for name, v in {"x_sq": exact.square().sum(1), "x_sum": exact}.items()},
        }
        cluster = text.cluster[document]
        return cls(lm, resume, spliced, scored, target, x, exact, p, negentropy, chunk, cluster, document, shared)

    def add(self, found: Measured, coder: Coder) -> None:
        """Add this group to the sums of one SAE."""
        features = coder.encode(self.x)
        x_hat = coder.decode(features)
        nats, cross = scores(
            spliced_logits(self.lm, self.resume, self.spliced, self.scored, x_hat), self.target, self.p
        )
        of_scored = {"spliced": nats, "kl": self.negentropy - cross}
        of_spliced = _reconstruction(self.exact, x_hat, features)
        sums = dict(self.shared)
        sums |= {name: per_chunk(value, self.shared["tokens"]) for name, value in of_scored.items()}
        sums |= {name: per_chunk(value, self.shared["rows"]) for name, value in of_spliced.items()}
        sums["firing"] = firing(features, self.chunk[self.spliced], len(self.document), coder.sae.width)
        for name, value in sums.items():
            np.add.at(getattr(found.sums, name), self.cluster, value)
            if name in found.documents:
                np.add.at(found.documents[name], self.document, value)


def firing(features: Features, place: Tensor, count: int, width: int) -> np.ndarray:
    """int64 [count, M]: of the rows in each of `count` places, on how many each feature is active. place [n] int64."""
    place = place.to(features.indptr.device).repeat_interleave(features.indptr.diff())
    return torch.bincount(place * width + features.feature, minlength=count * width).view(count, -1).cpu().numpy()


def spliced_logits(lm: LM, resume: Resume, spliced: Tensor, scored: Tensor, x_hat: Tensor | None) -> Tensor:
    """[scored, V] with x_hat [rows, d] at the spliced positions, or of the clean LM."""
    activation = None
    if x_hat is not None:
        activation = resume.activation.clone()
        activation[spliced] = x_hat.to(activation)
    return lm.finish(resume, activation, scored)


def scores(logits: Tensor, target: Tensor, p: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Per row, float32 [n] each: cross-entropy of target [n] in nats, and Σ p·log q for p [n, V], nothing without.

    logits [n, V], q their softmax. A few rows at a time, which stay in the cache: a quarter of the time of all at once.
    """
    found = torch.empty(2, len(logits), device=logits.device)
    target = target.to(logits.device)
    size = max(1, LOGITS_AT_ONCE // logits.shape[1])
    for start in range(0, len(logits), size):
        some = slice(start, start + size)
        log_q = torch.log_softmax(logits[some].float(), dim=-1)
        found[0, some] = -log_q.gather(1, target[some, None])[:, 0]
        if p is not None:
            found[1, some] = log_q.mul_(p[some]).sum(1)
    nats, cross = found.cpu()
    return nats, cross if p is not None else torch.empty(0)


def per_chunk_count(chunk: Tensor, where: Tensor, chunks: int) -> np.ndarray:
    """int64 [chunks]: positions in `where` (bool [b, t]) of each; chunk [b, t]."""
    return torch.bincount(chunk[where], minlength=chunks).numpy()


def per_chunk(values: Tensor, counts: np.ndarray) -> np.ndarray:
    """Sums over each chunk's values, of which there are `counts` (int64 [chunks]): [n, …] → [chunks, …].

    Chunks stand one after the other, context by context. In float64, whole numbers in int64.
    """
    values = (values.double() if values.is_floating_point() else values.long()).cpu()
    found = np.zeros((len(counts), *values.shape[1:]), values.numpy().dtype)
    some = counts > 0
    if some.any():
        found[some] = np.add.reduceat(values.numpy(), (np.cumsum(counts) - counts)[some], axis=0)
    return found


def document_evaluation(
    measured: Measured, text: HeldOut | HeldOutRows, weights: np.ndarray, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """The measured part of evaluation.json. weights [R, clusters]: bootstrap replicates, shared by a study's SAEs."""
    sums, documents = measured.sums, measured.documents
    seen = np.flatnonzero(text.cluster >= 0)
    found = metrics.measure(sums)
    error = metrics.standard_error((documents["spliced"] - documents["clean"])[seen], documents["tokens"][seen])
    errors = metrics.standard_errors(sums) | {"delta_lm_loss": error}
    delta = found["delta_lm_loss"]
    said = list(notes)
    if not np.isnan(delta) and not error <= 0.05 * abs(delta):
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
            "identity": [text.names[i] for i in seen],
            **{key: documents[key][seen].tolist() for key in ("tokens", "clean", "spliced")},
        },
        "histogram": metrics.frequency_histogram(sums.firing.sum(0), int(sums.rows.sum())),
        "text": {
            "tokens": text.tokens,
            "documents": len(seen),
            "clusters": text.clusters,
            "digest": text.digest,
        },
        "notes": said,
    }
