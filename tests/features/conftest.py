"""Feature pages of two small SAEs, and a browser to look at them."""

from __future__ import annotations

import pytest

from jumpahead.features.build import FeaturesConfig, SAEPoint, build_features
from jumpahead.progress import SilentProgress
from jumpahead.storage.layout import FeaturesFolder
from jumpahead.text.documents import is_held_out
from jumpahead.text.source import Document
from jumpahead.text.tokenize import tokenize
from tests.evaluation.test_evaluate import SITE, random_sae

HOSTILE = "</script><img src=x onerror=alert(1)>\u202e\"'`${1}\\ 🎉 日本語 עברית\n"


def hostile_documents():
    """Held-out documents whose text and names would do harm if they were taken for HTML or script."""
    found, number = [], 0
    while len(found) < 12:
        number += 1
        name = f"<b>{number}</b>.txt"
        if is_held_out(name, 0.1):
            found.append(Document(name, HOSTILE * 2 + "abc " * (number % 7)))
    return found


@pytest.fixture(scope="session")
def points(lm_of):
    """Two SAEs that get pages, and one that does not."""
    lm = lm_of("neox")
    about = {"l0": 3.0, "delta_lm_loss": 0.25}
    return [
        SAEPoint(
            f"sae-{name}", f"{name} <i>k</i> = 3", SITE, lambda name=name: random_sae(lm, SITE, name),
            {"series": name, "path": f"saes/{name}", **about},
        )
        for name in ("jumprelu", "topk", "gated")
    ]  # fmt: skip


@pytest.fixture(scope="session")
def hostile_text(lm_of):
    from jumpahead.evaluation.held_out import HeldOut

    return HeldOut.first_groups(tokenize(hostile_documents(), lm_of("neox"), split="held_out", held_out=0.1), 10**6)


@pytest.fixture(scope="session")
def build(lm_of, points, hostile_text):
    """Writes feature pages into a folder, with some of the arguments replaced; returns the folder."""

    def write(folder, **changes):
        given = {"name": "<b>run</b>", "source": "hostile & co", "inputs": "digest"}
        chosen = changes.pop("chosen", ["sae-jumprelu", "sae-topk"])
        build_features(
            FeaturesFolder(folder), points, chosen, lm_of("neox"), hostile_text, FeaturesConfig(3, 400),
            changes.pop("progress", SilentProgress()), **(given | changes),
        )  # fmt: skip
        return FeaturesFolder(folder)

    return write


@pytest.fixture(scope="session")
def pages(build, tmp_path_factory):
    return build(tmp_path_factory.mktemp("pages") / "features")
