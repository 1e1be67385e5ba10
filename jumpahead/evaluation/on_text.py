"""Evaluate SAEs of any make on any text, without a run: the metrics of a run's evaluation, on the text's held-out part.

The text is split as a study splits it: SAEs of a run on the same text are evaluated on what they were not trained on.
The mean activation, for mean ablation, and which rows are outliers are measured on the evaluated text: SAEs of other
libraries do not know them.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jumpahead.activations.moments import Moments, measure_moments
from jumpahead.activations.origins.live import Live
from jumpahead.errors import StudyError
from jumpahead.evaluation.evaluate import evaluate
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.evaluation.outliers import OutlierRule
from jumpahead.evaluation.sums import evaluation_json
from jumpahead.lm.model import LM
from jumpahead.lm.sites import parse_site
from jumpahead.progress import Progress
from jumpahead.resampling import replicate_weights
from jumpahead.sae.saved import SAE
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents
from jumpahead.text.sources import source_of
from jumpahead.text.tokenize import tokenize

STREAMED_TOKENS = 2
"""Tokens that are read of a streamed dataset, as a multiple of those that are scored."""


def evaluate_on_text(
    saes: Mapping[str, SAE],
    lm: LM,
    text: TextConfig,
    *,
    site: str | None,
    tokens: int,
    replicates: int,
    packing: Any,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return the evaluation of every SAE, in order: its name, site, dimensions and the content of evaluation.json.

    site: where the SAEs are spliced in; None for the site that each was trained at. tokens: held-out tokens that are
    scored. replicates: bootstrap replicates. packing: `lm.packing` of the model's configuration.

    Raises StudyError if an SAE does not say its site and none is given, DataError if its d is not the site's.
    """
    sites = {name: site_of(name, sae, site) for name, sae in saes.items()}
    held_out = read_held_out(lm, text, tokens, packing, progress)
    weights = replicate_weights(held_out.clusters, replicates)
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(sites.values()):
        members = {name: sae for name, sae in saes.items() if sites[name] == key}
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            moments = measure_site(lm, held_out, key)
            outliers = OutlierRule.of({"outliers": moments.outliers()})
            measured = evaluate(members, lm, held_out, key, moments.mean, progress, device=lm.device, outliers=outliers)
        notes = [str(one.message) for one in raised if issubclass(one.category, UserWarning)]
        for name, sae in members.items():
            own = [note for note in notes if note.startswith(repr(sae))]
            found[name] = {
                "sae": name,
                "made_by": sae.about.get("made_by", "jumpahead"),
                "architecture": sae.architecture,
                "setting": sae.setting and sae.setting._asdict(),
                "site": key,
                "d": sae.d,
                "width": sae.width,
                **evaluation_json(measured[name], held_out, weights, own),
            }
    return [found[name] for name in saes]


def site_of(name: str, sae: SAE, site: str | None) -> str:
    """Return the key of the site that an SAE is spliced in at. Raises StudyError if it is not known.

    name: of the SAE, for the error. site: the site that was asked for; None for the SAE's own.
    """
    known = site or sae.location.site
    if known is None:
        raise StudyError(f"{name} does not say its site: name one with --site, such as layers.3.residual.")
    return parse_site(known).key


def read_held_out(lm: LM, text: TextConfig, tokens: int, packing: Any, progress: Progress) -> HeldOut:
    """Return the held-out part of a text with at least `tokens` scored tokens, or all of it."""
    with tempfile.TemporaryDirectory() as folder:
        source = source_of(text, Path(folder))
        source.prepare(progress)
        limit = text.max_tokens or (STREAMED_TOKENS * tokens if source.is_streamed else None)
        progress.say(f"reading {text.source}")
        contexts = tokenize(
            documents(source), lm, split="held_out", held_out=text.held_out, max_tokens=limit, packing=packing
        )
    return HeldOut.first_groups(contexts, tokens)


def measure_site(lm: LM, held_out: HeldOut, site: str) -> Moments:
    """Return mean and size of a site's activations at the positions that are spliced."""
    activations = Live(lm, held_out.contexts, [site])
    activations.rows_per_group = activations.rows_per_group[: held_out.groups]
    return measure_moments(activations, activations.total_rows)[parse_site(site).key]
