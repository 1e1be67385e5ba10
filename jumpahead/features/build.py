"""Feature pages of several SAEs: the pass over the text, what is computed from the weights, and the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from jumpahead.engine import SparseEncoder
from jumpahead.errors import StudyError
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.features.bias import BiasLikeness, measure_bias_likeness, most_frequent
from jumpahead.features.collect import Collected, FeatureActivity, collect
from jumpahead.features.examples import TextPassages, used_chunks
from jumpahead.features.labels import Labeller
from jumpahead.features.logits import logit_weights
from jumpahead.features.neuronpedia import write_batches
from jumpahead.features.pages import bias_note, write_list, write_page, write_passages, write_records
from jumpahead.features.records import FeatureTable, alive_features, feature_records, measure_features
from jumpahead.features.similarity import best_cosines, unit_rows
from jumpahead.features.token_text import TokenText
from jumpahead.lm.model import LM
from jumpahead.progress import Progress
from jumpahead.sae.saved import SAE
from jumpahead.storage.digests import digest_json
from jumpahead.storage.folders import remove_path
from jumpahead.storage.layout import FeaturesFolder

MATCHED_FEATURES = 4096
"""Most frequent features of an SAE that are looked for in the other SAEs of the site."""


class SAEPoint(NamedTuple):
    """An SAE of a site: one that gets pages, or one that features are looked for in."""

    name: str
    """Its folder among the pages, and its name in links."""
    title: str
    site: str
    load: Callable[[], SAE]
    about: dict[str, Any]
    """Its facts on the pages: `series`, `l0`, `delta_lm_loss`, `path`; None for what is not known."""


class FeaturesConfig(NamedTuple):
    """The amount that is measured."""

    bias_features: int
    """Most frequent features of each SAE whose bias-likeness is measured."""
    bias_tokens: int
    """Scored tokens that bias-likeness is measured on."""
    with_neuronpedia: bool = False
    """Whether batches of features are also written under Neuronpedia's names."""


def build_features(
    folder: FeaturesFolder,
    points: Sequence[SAEPoint],
    chosen: Sequence[str],
    lm: LM,
    text: HeldOut,
    config: FeaturesConfig,
    progress: Progress,
    *,
    name: str,
    source: str,
    inputs: str,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Write the feature pages of the chosen SAEs; return the content of features.json.

    points: all SAEs, of one or several sites. chosen: names of those that get pages. name, source: of the run and its
    text, as shown. inputs: the digest of everything that the pages depend on. device: where SAEs encode.
    """
    require_features_folder(folder)
    token_text = TokenText(lm.tokenizer)
    passages, used, described = TextPassages(text.contexts, token_text), set[int](), list[dict[str, Any]]()
    numbers = {point.name: number for number, point in enumerate(points)}
    tokens = int(text.contexts.rows_per_group[: text.groups].sum())
    folder.contents.unlink(missing_ok=True)
    for site in dict.fromkeys(point.site for point in points if point.name in chosen):
        here = [point for point in points if point.site == site]
        saes = {point.name: point.load().to(device) for point in here if point.name in chosen}
        checkpoint = folder.checkpoint(site)
        collected = collect(
            saes, lm, text, site, progress=progress, device=device, checkpoint=checkpoint,
            inputs=digest_json([inputs, list(saes)]),
        )  # fmt: skip
        labeller, weight = Labeller(collected, text.contexts, token_text), logit_weights(lm, site)
        across = _match_across(saes, collected, here, numbers, progress)
        bias = _measure_bias(saes, collected, lm, text, site, config, progress, device)
        for point in here:
            if point.name not in saes:
                continue
            sae, activity = saes[point.name], collected.activity[point.name]
            table = measure_features(
                sae, activity, labeller.label(activity), weight, across[point.name], bias[point.name]
            )
            used |= _write_sae(folder, point, table, tokens, token_text)
            if config.with_neuronpedia:
                found = feature_records(table, range(sae.width), tokens, token_text)
                write_batches(folder, point.name, site, lm.name, sae, found, passages, source)
            described.append({**_describe(sae, activity, collected.rows), "number": numbers[point.name],
                              "bias": bias_note(bias[point.name])})  # fmt: skip
    progress.say(f"writing {len(used):,} passages of the text")
    write_passages(folder, passages, used)
    _remove_other_saes(folder, set(chosen))
    index = {
        "inputs": inputs, "name": name, "lm": lm.name, "text": {"source": source, "tokens": tokens},
        "points": [{"name": one.name, "title": one.title, "site": one.site, **one.about} for one in points],
        "saes": described, "matched_features": MATCHED_FEATURES,
    }  # fmt: skip
    write_page(folder, index)
    for point in points:
        folder.checkpoint(point.site).unlink(missing_ok=True)
    return index


def require_features_folder(folder: FeaturesFolder) -> None:
    """Raise StudyError if the folder holds files but no feature pages."""
    if not folder.path.is_dir() or folder.contents.exists() or folder.page.exists():
        return
    if any(not path.name.endswith(".partial.safetensors") and not _is_of_pages(path) for path in folder.path.iterdir()):
        raise StudyError(f"{folder.path} holds other files: name an empty or new folder with --out.")


def _is_of_pages(path: Path) -> bool:
    """Return True for a folder of data of the pages."""
    return path.is_dir() and (
        path.name in ("text", "neuronpedia") or (path / "list.js").exists() or any(path.glob("0*.js"))
    )


def _write_sae(
    folder: FeaturesFolder, point: SAEPoint, table: FeatureTable, tokens: int, token_text: TokenText
) -> set[int]:
    """Write the records and the list of an SAE; return the text chunks that its examples are from."""
    used: set[int] = set()

    def records() -> Iterator[dict[str, Any]]:
        width = table.activity.width
        for start in range(0, width, 512):
            features = range(start, min(start + 512, width))
            for record, shown in feature_records(table, features, tokens, token_text):
                used.update(used_chunks([shown]))
                yield record

    write_records(folder, point.name, records())
    write_list(folder, point.name, table)
    return used


def _describe(sae: SAE, activity: FeatureActivity, rows: int) -> dict[str, Any]:
    """Return the numbers that the page shows of an SAE."""
    share = activity.count / max(1, rows)
    return {
        "architecture": sae.architecture, "width": sae.width, "d": sae.d,
        "l0": float(activity.count.sum() / max(1, rows)),
        "above_10pct": int((share > 0.1).sum()), "above_1pct": int((share > 0.01).sum()),
        "never_fired": int((activity.count == 0).sum()),
    }  # fmt: skip


def _match_across(
    saes: Mapping[str, SAE],
    collected: Collected,
    points: Sequence[SAEPoint],
    numbers: Mapping[str, int],
    progress: Progress,
) -> dict[str, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """Return, by SAE and by number of another SAE of the site, the nearest feature of each feature that fires.

    Only the `MATCHED_FEATURES` most frequent features are looked for; the others have the index −1.
    """
    found: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {name: {} for name in saes}
    pairs = sum(point.name != name for point in points for name in saes)
    with progress.phase("looking for features in other SAEs", pairs, "pairs of SAEs") as phase:
        for point in points:
            keys = unit_rows(saes.get(point.name) or point.load().to(next(iter(saes.values())).device))
            for name, sae in saes.items():
                if name == point.name:
                    continue
                activity = collected.activity[name]
                alive = alive_features(activity)
                order = np.sort(np.argsort(-activity.count[alive], kind="stable")[:MATCHED_FEATURES])
                index, cosine = best_cosines(unit_rows(sae)[torch.from_numpy(alive[order]).to(keys.device)], keys, 1)
                all_index, all_cosine = np.full(len(alive), -1), np.zeros(len(alive), np.float32)
                all_index[order], all_cosine[order] = index[:, 0], cosine[:, 0]
                found[name][numbers[point.name]] = (all_index, all_cosine)
                phase.advance(1)
    return found


def _measure_bias(
    saes: Mapping[str, SAE],
    collected: Collected,
    lm: LM,
    text: HeldOut,
    site: str,
    config: FeaturesConfig,
    progress: Progress,
    device: torch.device | str,
) -> dict[str, list[BiasLikeness]]:
    """Return the bias-likeness of the most frequent features of each SAE."""
    features = {name: most_frequent(collected.activity[name], config.bias_features) for name in saes}
    found: dict[str, list[BiasLikeness]] = {name: [] for name in saes}
    total = config.bias_tokens * sum(map(len, features.values()))
    if not total:
        return found
    with progress.phase("replacing frequent features by their mean", total, "tokens") as phase:
        for name, sae in saes.items():
            encoder = SparseEncoder(sae, device=device)
            activity = collected.activity[name]
            found[name] = measure_bias_likeness(
                encoder, activity, features[name], lm, text, site, config.bias_tokens, phase
            )
    return found


def _remove_other_saes(folder: FeaturesFolder, names: set[str]) -> None:
    """Remove the data of SAEs that have no pages any more."""
    for path in folder.path.iterdir():
        if path.is_dir() and path.name not in names and (path / "list.js").exists():
            remove_path(path)
