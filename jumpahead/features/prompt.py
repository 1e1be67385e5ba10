"""Which features of an SAE fire on a sentence, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from jumpahead.engine import SparseEncoder
from jumpahead.errors import DataError
from jumpahead.features.examples import rounded
from jumpahead.features.token_text import TokenText
from jumpahead.lm.model import LM
from jumpahead.lm.sae_location import warn_if_elsewhere
from jumpahead.lm.sites import parse_site
from jumpahead.sae.saved import SAE

SCHEMA = "jumpahead.prompt/1"


def features_on_prompt(sae: SAE, lm: LM, site: str, prompt: str, labels: Mapping[int, str]) -> dict[str, Any]:
    """Return the features that fire on each token of a prompt, the strongest first, as JSON values.

    labels: of features, as far as they are known. Special tokens, and the first token if the LM has no BOS, are not
    encoded. Raises DataError if the prompt is empty or longer than a context, or if the SAE's d is not the site's.
    """
    warn_if_elsewhere(sae, lm.name, lm.digest, parse_site(site))
    if sae.d != lm.width_at(site):
        raise DataError(f"{sae!r} takes activations of width {sae.d}; {site} has {lm.width_at(site)}.")
    own = lm.encode([prompt])[0].tolist()
    start = [] if lm.bos_id is None else [lm.bos_id]
    ids = start + own
    if not own:
        raise DataError("The prompt is empty.")
    if len(ids) > lm.context:
        raise DataError(f"The prompt has {len(own):,} tokens, more than the {lm.context:,} of a context: shorten it.")
    mask = lm.spliceable([ids])[0]
    x = lm.read([ids], [site])[site][0]
    features = SparseEncoder(sae, device=lm.device).encode(x[mask.to(x.device)].float())
    offsets, found = features.indptr.tolist(), {}
    for row, at in enumerate(torch.nonzero(mask)[:, 0].tolist()):
        entries = slice(offsets[row], offsets[row + 1])
        pairs = zip(features.feature[entries].tolist(), rounded(features.value[entries].cpu().numpy()), strict=True)
        found[at] = sorted(([j, float(value)] for j, value in pairs), key=lambda pair: (-pair[1], pair[0]))
    active = [found.get(at, []) for at in range(len(start), len(ids))]
    used = {feature for pairs in active for feature, _ in pairs}
    return {
        "schema": SCHEMA,
        "sae": repr(sae),
        "lm": lm.name,
        "site": site,
        "tokens": TokenText(lm.tokenizer).texts(own),
        "active": active,
        "labels": {str(feature): labels[feature] for feature in sorted(used) if feature in labels},
    }
