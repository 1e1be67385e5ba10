"""Features under the names that Neuronpedia reads: batches as SAEDashboard writes them.

What is not measured here is an empty list: correlated neurons and features, and histograms of logits and of decoder
weights. Groups of examples are by rank, so `bin_contains` is the group's share of the tokens where the feature fires.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jumpahead.features.collect_loops import AFTER, BEFORE
from jumpahead.features.examples import QUANTILE_GROUPS, FeatureExamples, Record, TextPassages
from jumpahead.lm.sites import parse_site
from jumpahead.sae.saved import SAE
from jumpahead.storage.json_files import write_json
from jumpahead.storage.layout import FeaturesFolder

FEATURES_PER_BATCH = 128
ALIGNED_NEURONS = 3
"""Dimensions of the site with the largest entries in the decoder row."""


def write_batches(
    folder: FeaturesFolder,
    name: str,
    site: str,
    model: str,
    sae: SAE,
    records: Iterable[tuple[dict[str, Any], FeatureExamples]],
    passages: TextPassages,
    source: str,
) -> int:
    """Write the features of an SAE that fire, in batches; return the number of batches.

    name: of the SAE among the pages. records: as `feature_records` returns them, with tokens as strings.
    """
    layer = parse_site(site).layer
    head = {"model_id": model, "layer": -1 if layer is None else layer, "sae_set": name}
    block, number = list[dict[str, Any]](), 0
    for record, shown in records:
        if record["count"]:
            block.append(neuronpedia_feature(record, shown, sae, passages, source))
        if len(block) == FEATURES_PER_BATCH:
            write_json(folder.neuronpedia(name, number), {**head, "features": block}, indent=None, has_checksum=False)
            block, number = [], number + 1
    if block:
        write_json(folder.neuronpedia(name, number), {**head, "features": block}, indent=None, has_checksum=False)
        number += 1
    return number


def neuronpedia_feature(
    record: dict[str, Any], shown: FeatureExamples, sae: SAE, passages: TextPassages, source: str
) -> dict[str, Any]:
    """Return a feature under Neuronpedia's names."""
    row = sae.params["W_dec"][record["index"]].detach().float()
    values, neurons = row.topk(min(ALIGNED_NEURONS, len(row)))
    bin_width, counts = record["histogram"]["bin"], record["histogram"]["counts"]
    raised, lowered = record.get("positive_logits", []), record.get("negative_logits", [])
    return {
        "feature_index": record["index"],
        "neuron_alignment_indices": neurons.tolist(),
        "neuron_alignment_values": [_short(value) for value in values.tolist()],
        "neuron_alignment_l1": [_short(value) for value in (values / row.abs().sum().clamp_min(1e-30)).tolist()],
        **{
            f"correlated_{kind}_{what}": [] for kind in ("neurons", "features") for what in ("indices", "l1", "pearson")
        },
        "neg_str": [token for token, _ in lowered],
        "neg_values": [value for _, value in lowered],
        "pos_str": [token for token, _ in raised],
        "pos_values": [value for _, value in raised],
        "frac_nonzero": record["density"],
        "freq_hist_data_bar_values": [_short((k + 0.5) * bin_width) for k in range(len(counts))],
        "freq_hist_data_bar_heights": counts,
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "n_prompts_total": len(passages.contexts),
        "n_tokens_in_prompt": int(passages.contexts.chunk_length.max()),
        "dataset": source,
        "decoder_weights_dist": [],
        "activations": [
            *(_activation(one, passages, 0, 0, 0) for one in shown.top),
            *(
                _activation(one, passages, group["low"], group["high"], 1 / QUANTILE_GROUPS)
                for group in shown.groups
                for one in group["examples"]
            ),
        ],
    }


def _activation(example: Record, passages: TextPassages, low: float, high: float, contains: float) -> dict[str, Any]:
    """Return an example: the tokens around it, and the activation at each."""
    chunk, offset, value, others = example
    tokens = passages.passage(chunk)["tokens"]
    first, last = max(0, offset - BEFORE), min(len(tokens), offset + AFTER + 1)
    found = {offset: value} | dict(zip((offset + by for by in others[::2]), others[1::2], strict=True))
    values = [found.get(at, 0.0) for at in range(first, last)]
    return {"bin_min": low, "bin_max": high, "bin_contains": contains, "tokens": tokens[first:last], "values": values}


def _short(value: float) -> float:
    """Return a number rounded to four significant digits."""
    return float(f"{value:.4g}")
