"""The folder of feature pages, which opens from the disk: one HTML page, and data that it loads when it is asked for.

A page from the disk may not fetch files, but it may load scripts. Every data file is therefore a script with one call:
`jumpahead.receive(NAME, VALUE)`. The Content-Security-Policy allows the page's own script by hash and scripts from the
folder itself; nothing from the network. All text of a run is untrusted: the page sets text, never HTML.

    index.html                     the page: list and feature
    features.json                  the SAEs of the folder; written last
    text/0001.js                   passages of the text
    SAE/list.js                    label, frequency and size of every feature
    SAE/0001.js                    records of `FEATURES_PER_FILE` features
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from jumpahead.errors import ArtefactError
from jumpahead.features.bias import BiasLikeness
from jumpahead.features.examples import TextPassages
from jumpahead.features.records import FeatureTable, rounded_score
from jumpahead.report.assets import csp_hash_source
from jumpahead.report.sanitize import sanitize
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import read_json, to_json, write_json
from jumpahead.storage.layout import FeaturesFolder

SCHEMA = "jumpahead.features/1"
FEATURES_PER_FILE, PASSAGES_PER_FILE = 128, 16
_ASSETS = Path(__file__).parent
_NO_SCORE = 255


def write_data_file(path: Path, name: str, value: Any) -> Path:
    """Write a script that hands a JSON value to the page under a name."""
    return write_atomic(path, f"jumpahead.receive({json.dumps(name)},{to_json(value)});\n")


def write_records(folder: FeaturesFolder, sae: str, records: Iterator[dict[str, Any]]) -> int:
    """Write the records of all features of an SAE, in order, in files of `FEATURES_PER_FILE`; return their number."""
    count, block = 0, list[dict[str, Any]]()
    for record in records:
        block.append(record)
        if len(block) == FEATURES_PER_FILE:
            write_data_file(folder.records(sae, count), f"{sae}/{count}", block)
            count, block = count + 1, []
    if block:
        write_data_file(folder.records(sae, count), f"{sae}/{count}", block)
        count += 1
    return count


def write_list(folder: FeaturesFolder, sae: str, table: FeatureTable) -> Path:
    """Write the list of an SAE's features: columns of numbers, packed, and the label and strongest tokens of each."""
    found = [rounded_score(label) for label in table.labels]
    scores = [_NO_SCORE if score is None else round(100 * score) for score in found]
    value = {
        "count": _packed(table.activity.count.astype("<u4")),
        "max": _packed(table.activity.top.value[:, 0].astype("<f4")),
        "score": _packed(np.array(scores, np.uint8)),
        "labels": [one.text if count else "" for one, count in zip(table.labels, table.activity.count, strict=True)],
        "words": ["\u0001".join(one.words) for one in table.labels],
        "bias": [[one.feature, one.value] for one in table.bias.values()],
    }
    return write_data_file(folder.feature_list(sae), f"{sae}/list", value)


def _packed(values: np.ndarray) -> str:
    """Return the little-endian bytes of an array in base64."""
    return base64.b64encode(values.tobytes()).decode("ascii")


def write_passages(folder: FeaturesFolder, passages: TextPassages, chunks: Iterable[int]) -> None:
    """Write the text chunks that examples are from, in files of the passages with neighbouring numbers."""
    files: dict[int, dict[str, Any]] = {}
    for chunk in sorted(chunks):
        passage = passages.passage(chunk)
        passage["document"] = sanitize(passage["document"])
        files.setdefault(chunk // PASSAGES_PER_FILE, {})[str(chunk)] = passage
    for number, found in files.items():
        write_data_file(folder.passages(number), f"text/{number}", found)


def write_page(folder: FeaturesFolder, index: Mapping[str, Any]) -> Path:
    """Write index.html, and then features.json, which marks the folder as complete; return the page."""
    index = {"schema": SCHEMA, **index}
    page = write_atomic(folder.page, render_page(index))
    write_json(folder.contents, index)
    return page


def rewrite_page(folder: FeaturesFolder) -> Path:
    """Write index.html again from features.json; return it."""
    return write_atomic(folder.page, render_page(read_json(folder.contents, SCHEMA)))


def render_page(index: Mapping[str, Any], *, is_alone: bool = False) -> str:
    """Return the HTML of the page, or, if it is alone, of a page with all data in `index` and no other files."""
    script, css = _asset("page.js"), _asset("page.css")
    shown = {**index, "records_per_file": FEATURES_PER_FILE, "passages_per_file": PASSAGES_PER_FILE}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("page.html.jinja")).render(
        title=f"{sanitize(str(index['name']))}: features",
        policy=content_security_policy(script, css, is_alone=is_alone),
        css=Markup(css),  # trusted: part of this package
        script=Markup(script),
        data=Markup(_inline_json(sanitize(shown))),
    )


def content_security_policy(script: str, style: str, *, is_alone: bool) -> str:
    """Return the Content-Security-Policy: the page's own script and style by hash, data files of its folder."""
    files = "" if is_alone else " 'self' file:"
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {csp_hash_source(script)}{files}",
            f"style-src {csp_hash_source(style)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def render_prompt_page(result: Mapping[str, Any]) -> str:
    """Return the HTML of a page that shows which features fire on a prompt (prompt.py); it needs no other file."""
    about = f"{result['sae']}, {result['site']}, LM {result['lm']}. Choose a token to see which features fire on it."
    prompt = {**{key: result[key] for key in ("tokens", "active", "labels")}, "about": about}
    return render_page({"name": "Features on a prompt", "prompt": prompt}, is_alone=True)


def read_labels(folder: FeaturesFolder, sae: str) -> dict[int, str]:
    """Return the labels of an SAE's features in a folder of feature pages; {} if the SAE has no pages there."""
    path = folder.feature_list(sae)
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8").partition(",")[2].rpartition(")")[0])
        return {feature: label for feature, label in enumerate(value["labels"]) if label}
    except (ValueError, KeyError) as exc:
        raise ArtefactError(f"{path} is damaged: remove it, and `jumpahead features` makes it again.") from exc


def bias_note(found: Iterable[BiasLikeness]) -> dict[str, Any]:
    """Return how many features of those that were measured act like a bias, for the list of SAEs."""
    values = [one.value for one in found]
    measured = [value for value in values if value is not None]
    return {"measured": len(measured), "above_half": sum(value > 0.5 for value in measured), "asked": len(values)}


def _inline_json(value: Any) -> str:
    """Return JSON that can stand in a script element: `<` is escaped, so that nothing closes the element."""
    return to_json(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    """Return the text of an asset file of this folder."""
    return (_ASSETS / name).read_text(encoding="utf-8")
