"""Write docs/MODELS.md: for every causal family of transformers, which sites are what their names promise.

    python -m tools.models                 all families; what is measured is kept in build/models and not measured again
    python -m tools.models llama bloom     these families anew, printed, without the page

Each family is a tiny model with random weights (model_families.py): what is measured is the family's code, not a model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from jumpahead.errors import JumpaheadError
from jumpahead.lm.checks import check_and_truncate
from jumpahead.lm.sites import KINDS, Site
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.digests import digest_file, digest_json
from tools.model_families import family_names, random_lm

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "MODELS.md"
KEPT = ROOT / "build" / "models"
PADDED = [[0, 0, 5, 9, 33, 12], [7, 5, 9, 33, 12, 40]]
"""Two rows, the first padded on the left by one position, each with a BOS of its own or none."""
MODEL_ERRORS = (ValueError, TypeError, AttributeError, LookupError, RuntimeError)
"""Exceptions of a model that does not take an attention mask."""


class Family(NamedTuple):
    """What was measured of one family."""

    name: str
    model: str
    """Class of the model; empty if no tiny model could be made."""
    sites: dict[str, dict[str, list[int]]]
    """By kind of site: which blocks have it, by the module within the block."""
    refused: list[str]
    """Sentences with which a site or the model was refused."""
    padding: bool
    """Whether left-padded rows with an attention mask give what the rows alone give."""
    runs_whole: bool
    """Whether the whole model runs for each SAE, because its blocks leave more behind than their output."""


def measure(name: str) -> Family:
    """Measure every block's sites of a family's tiny model, and check all that are found."""
    try:
        lm = random_lm(name)
    except JumpaheadError as exc:
        return Family(name, "", {}, [str(exc)], False, False)
    except Exception as exc:  # noqa: BLE001, a configuration that cannot be made small raises anything
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        return Family(name, "", {}, [f"No tiny model was made: {reason}"], False, False)
    padding = _takes_padding(lm)
    found: dict[str, str] = {}
    refused: list[str] = []
    for site in (Site(layer, kind).key for kind in KINDS for layer in range(len(lm.blocks))):
        try:
            found[site] = lm.describe_site(site)
        except JumpaheadError as exc:
            refused.append(str(exc))
    found, runs_whole = _check(lm, found, refused)
    sites: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for site, path in found.items():
        _, layer, kind = site.split(".")
        sites[kind][path.partition(f".{layer}.")[2]].append(int(layer))
    return Family(name, type(lm.model).__name__, sites, refused, padding, runs_whole)


def _check(lm: Any, found: dict[str, str], refused: list[str]) -> tuple[dict[str, str], bool]:
    """Return the sites that pass the checks of a run, and whether the whole model has to run after a site.

    found: the module of each site. refused: gets the sentence of each site that fails.
    """
    passed = dict(found)
    for site in found if found and _failure(lm, list(found)) else ():
        if failure := _failure(lm, [site]):
            refused.append(failure)
            del passed[site]
    runs_whole = any(not lm.can_resume(site) for site in passed)
    if passed:
        check_and_truncate(lm, list(passed))
    return passed, runs_whole


def _failure(lm: Any, sites: list[str]) -> str:
    """Return the sentence with which the checks of a run refuse sites of a whole model; empty if they pass."""
    try:
        check_and_truncate(_Untruncated(lm), sites)  # pyright: ignore[reportArgumentType]
    except JumpaheadError as exc:
        return str(exc)
    return ""


class _Untruncated:
    """An LM that stays whole, so that each of its sites can be checked alone."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm

    def __getattr__(self, name: str) -> Any:
        """Return the attribute of the LM."""
        return getattr(self._lm, name)

    def truncate_after(self, sites: object) -> None:
        """Keep the model."""


def _takes_padding(lm: Any) -> bool:
    """Return True if the model's logits are right for rows padded on the left, by its attention mask."""
    try:
        lm.logits(PADDED, attention_mask=[[0, 1, 1, 1, 1, 1], [1] * 6])
    except (JumpaheadError, *MODEL_ERRORS):
        return False
    return True


def measure_all(names: list[str]) -> list[Family]:
    """Return the measurements of all families; those kept of the same code are not made again."""
    import transformers

    code = [*(ROOT / "jumpahead" / "lm").glob("*.py"), ROOT / "tools" / "model_families.py"]
    inputs = digest_json([transformers.__version__, {path.name: digest_file(path) for path in sorted(code)}])
    families = []
    for name in names:
        path = KEPT / f"{name}.json"
        kept = json.loads(path.read_text()) if path.is_file() else {}
        if kept.get("inputs") != inputs:
            start = time.perf_counter()
            kept = {"inputs": inputs, "family": measure(name)._asdict()}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(kept))
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
        families.append(Family(**kept["family"]))
    return families


def page(families: list[Family], version: str) -> str:
    """Return the page in Markdown."""
    usable = [family for family in families if family.sites]
    counts = [sum(kind in family.sites for family in usable) for kind in KINDS]
    lines = [
        "# Models",
        "",
        f"Which sites are what their names promise, in the {len(families)} causal families of transformers {version}.",
        "Written by `make models` from tiny models with random weights, one of each family: it says what the family's",
        "code does. A run measures the same on the model at hand, and refuses a site that is not what its name says,",
        "in one sentence with the sites to take instead ([how](models-and-text.md#checks-before-a-run)).",
        "",
        f"{len(usable)} families have a site: {counts[0]} `residual`, {counts[1]} `mlp`, {counts[2]} `attention`.",
        "",
        "- `residual`, `mlp`, `attention`: the module within a block that carries the site; × a number that the model",
        "  multiplies the module's output by; (0, 2) the blocks of the tiny model that have it, if not all do.",
        "- *padding*: left-padded batches are right with `attention_mask`; otherwise they are refused.",
        "- *whole*: blocks leave more behind than their output, so each SAE's loss takes a whole pass of the model.",
        "",
        "| Family | Model | `residual` | `mlp` | `attention` | padding | |",
        "|---|---|---|---|---|---|---|",
        *(_row(family) for family in usable),
        "",
        "## Refused, and why",
        "",
        *(f"- **{family.name}**: {' '.join(_reasons(family))}" for family in families if family.refused),
    ]
    return "\n".join(lines) + "\n"


def _row(family: Family) -> str:
    """Return a family's row of the table."""
    count = max((max(blocks) for kind in family.sites.values() for blocks in kind.values()), default=0) + 1
    cells = []
    for kind in KINDS:
        found = family.sites.get(kind, {})
        parts = [
            f"`{path}`" + ("" if len(blocks) == count else f" ({', '.join(map(str, blocks))})")
            for path, blocks in found.items()
        ]
        cells.append("<br>".join(parts) or "–")
    marks = ["yes" if family.padding else "–", "whole" if family.runs_whole else ""]
    return " | ".join([f"| {family.name}", family.model, *cells, *marks]) + " |"


def _reasons(family: Family) -> list[str]:
    """Return a family's sentences, each once, whatever the block and the kind of site that they name."""
    found: dict[str, str] = {}
    for sentence in family.refused:
        kind = next((kind for kind in KINDS if f".{kind}" in sentence), "") if "has no layers" in sentence else ""
        found.setdefault(kind or sentence.partition(" cannot be")[2] or sentence, sentence)
    return list(found.values())


def main() -> None:
    """Measure the families and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="measure these and print them, without the page")
    names = parser.parse_args().families
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if names:
        for name in names:
            print(json.dumps(measure(name)._asdict(), indent=1))
        sys.exit()
    families = measure_all(family_names())
    write_atomic(PAGE, page(families, transformers.__version__))
    print(f"{PAGE.relative_to(ROOT)}: {sum(bool(family.sites) for family in families)} of {len(families)} families")


if __name__ == "__main__":
    main()
