"""The model card: a README.md with the metadata that the hub reads, tables of all SAEs, and how to load one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jumpahead.formatting import format_number, format_setting
from jumpahead.metrics import METRICS
from jumpahead.sae.saved import SAE

COLUMNS = ("l0", "delta_lm_loss", "fvu", "above_10pct", "never_fired")
"""Metrics in the tables, in this order."""
TAGS = ("sparse-autoencoder", "sae", "saelens", "mechanistic-interpretability", "jumpahead")


class CardFacts(NamedTuple):
    """The facts of a model card."""

    repo: str
    """`user/repo`."""
    licence: str
    """Identifier of a licence, as the hub lists them."""
    lm: str | None
    """Name of the language model."""
    architectures: list[str]
    folders: list[str]
    """Folder of every SAE in the repository."""
    sites: list[str]
    figures: list[str]
    """Names of the figures of the panels."""
    frontier: Mapping[str, Any] | None
    """Content of frontier.json; None for a single SAE."""

    @classmethod
    def of_run(
        cls, repo: str, licence: str, frontier: Mapping[str, Any], saes: Mapping[str, SAE], figures: list[str]
    ) -> CardFacts:
        """Return the facts of a run. saes: by folder in the repository. figures: their names, one per panel."""
        architectures = list(dict.fromkeys(series["architecture"] for series in frontier["series"]))
        sites = list(dict.fromkeys(panel["site"] for panel in frontier["panels"]))
        return cls(repo, licence, frontier["lm"]["name"], architectures, list(saes), sites, figures, frontier)

    @classmethod
    def of_sae(cls, repo: str, licence: str, saes: Mapping[str, SAE]) -> CardFacts:
        """Return the facts of one SAE. saes: by its folder in the repository."""
        (sae,) = saes.values()
        site, lm = sae.location.site, sae.location.lm
        return cls(repo, licence, lm, [sae.architecture], list(saes), [site] if site else [], [], None)


def model_card(facts: CardFacts) -> str:
    """Return the content of README.md."""
    parts = [_metadata(facts), f"# {facts.repo.partition('/')[2]}", _introduction(facts)]
    if facts.frontier is not None:
        for figure, panel in zip(facts.figures, facts.frontier["panels"], strict=True):
            parts += [f"## {panel['site']}, {panel['width']:,} features"]
            parts += [f"![{METRICS[panel['fidelity']].name} against L0]({figure})"]
            parts += [_measured_on(panel), _table(panel, facts.frontier)]
    parts += ["## Use", _usage(facts)]
    return "\n\n".join(parts) + "\n"


def _metadata(facts: CardFacts) -> str:
    """Return the YAML block that the hub reads."""
    lines = ["---", f"license: {_word(facts.licence)}", "library_name: saelens", "tags:"]
    lines += [f"- {_word(tag)}" for tag in (*TAGS, *facts.architectures)]
    if facts.lm and re.fullmatch(r"[\w.-]+/[\w.-]+", facts.lm):
        lines += [f"base_model: {facts.lm}"]
    return "\n".join([*lines, "---"])


def _word(text: str) -> str:
    """Return a word for YAML, without characters that mean something there."""
    return re.sub(r"[^\w.-]", "-", text)


def _introduction(facts: CardFacts) -> str:
    """Return what the SAEs are and what they were trained on."""
    count = len(facts.folders)
    what = f"{count} sparse autoencoder{'s' * (count != 1)} ({', '.join(facts.architectures)})"
    lm = f" of {facts.lm}" if facts.lm else ""
    at = f", at {', '.join(f'`{site}`' for site in facts.sites)}" if facts.sites else ""
    text = facts.frontier["text"] if facts.frontier else {}
    trained = f" Trained on {text['source']}." if text.get("source") else ""
    return f"{what}{lm}{at}.{trained} They take the model's own activations, without any scaling."


def _measured_on(panel: Mapping[str, Any]) -> str:
    """Return a sentence on the held-out text and the loss of the model."""
    loss = panel.get("ce_clean")
    clean = f" The model's own loss there is {format_number(loss)} nats per token." if loss is not None else ""
    return (
        f"Measured on {panel['tokens']:,} held-out tokens in {panel['documents']:,} documents, with the SAE spliced "
        f"into the model.{clean} ± is a standard error."
    )


def _table(panel: Mapping[str, Any], frontier: Mapping[str, Any]) -> str:
    """Return the table of all SAEs of a panel."""
    titles = {series["name"]: series["title"] for series in frontier["series"]}
    keys = [key for key in COLUMNS if any(point["metrics"].get(key) is not None for point in panel["points"])]
    heads = ["Series", "Setting", *(METRICS[key].short for key in keys), "Folder"]
    lines = [_row(heads), _row(["---", "---", *(["--:"] * len(keys)), "---"])]
    for point in panel["points"]:
        values = [_value(point, key) for key in keys]
        folder = f"`{point['path'].removeprefix('saes/')}`"
        lines.append(_row([titles[point["series"]], format_setting(point["setting"]), *values, folder]))
    return "\n".join(lines)


def _value(point: Mapping[str, Any], key: str) -> str:
    """Return a metric as text, with its standard error if it is the loss."""
    error = point["standard_errors"].get(key) if key == "delta_lm_loss" else None
    return format_number(point["metrics"].get(key)) + (f" ± {format_number(error)}" if error else "")


def _row(cells: list[str]) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _usage(facts: CardFacts) -> str:
    """Return the lines that load an SAE in SAELens and in jumpahead."""
    folder = facts.folders[0]
    return (
        "```python\nfrom sae_lens import SAE\n\n"
        f'sae = SAE.from_pretrained("{facts.repo}", "{folder}")\n```\n\n'
        "```python\nimport jumpahead\n\n"
        f'sae = jumpahead.load("hf://{facts.repo}/{folder}")\n```'
    )
